"""What is too large for the protocol costs one request at most, never the client."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.limits import CONNECT_BYTES_MAX, CONTENT_BYTES_MAX, OUTBOX_HEADS_MAX
from imcore.tls import gateway_ssl_context
from imcore.words import ClientKey
from services.sdk import Options, RequestRefused, SendFailed
from services.sdk.core.outbox import Put, PutLane
from services.sdk.store import SqliteStore
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Region

CHAT = "d:ann:bob"
FAST = {
    "heartbeat_ms": 300,
    "heartbeat_timeout_ms": 10_000,
    "connect_timeout_ms": 10_000,
    "backoff_base_ms": 5,
    "backoff_max_ms": 40,
    "idle_pull_ms": 60_000,
}


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[Region]:
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(FAST))
    await region.start("fra", "iad")
    yield region
    await region.stop()


async def test_a_message_that_no_region_takes_is_refused_before_it_is_written(
    region, ca_file, tmp_path
):
    box = tmp_path / "outbox.db"
    async with App(region, ca_file, outbox=box) as ann:
        for size in (CONTENT_BYTES_MAX + 1, 300_000):
            with pytest.raises(SendFailed) as failed:
                await ann.client.send(CHAT, bytes(size), timeout_ms=20_000)
            assert failed.value.code == "too_large" and not failed.value.pending
        for conversation in ("x", "g:", "d:b:a", "d:ann:" + "b" * 65, "g:\udc80", "d::bob"):
            with pytest.raises(SendFailed) as failed:
                await ann.client.send(conversation, b"x", timeout_ms=20_000)
            assert failed.value.code == "bad_request"
        assert ann.client.state.outbox == 0
        await ann.client.send(CHAT, bytes(CONTENT_BYTES_MAX), timeout_ms=20_000)


async def stored(box: Path, lanes: list[PutLane], entries: list[Put]) -> None:
    store = SqliteStore(box)
    store.open(lambda: "box1")
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    store.write([*lanes, *entries], lambda error: written.set_result(None))
    await written
    await store.close()


async def test_a_stored_message_that_fits_no_frame_does_not_stop_the_others(
    region, ca_file, tmp_path
):
    """An earlier release let it in: every start would fail at it."""
    box = tmp_path / "outbox.db"
    contents, endless = [b"1", bytes(300_000), b"3"], "g:" + "x" * 300_000
    await stored(
        box,
        [PutLane(CHAT, "box1", 1, 4, False), PutLane(endless, "box1", 1, 2, False)],
        [
            *(Put(CHAT, "box1", n, c, 0, 0, b"", False) for n, c in enumerate(contents, 1)),
            Put(endless, "box1", 1, b"x", 0, 0, b"", False),
        ],
    )
    async with App(region, ca_file, outbox=box) as ann:
        region.mirror()
        await eventually(lambda: len(ann.list) >= 1)
        await eventually(lambda: region.idcs["fra"].requests["send"] >= 2)
        region.mirror()
        await ann.client.send(CHAT, b"4", timeout_ms=20_000)
        assert [c.content for c in region.idcs["fra"].own[CHAT]] == [b"1", b"3", b"4"]
        region.mirror()
        await eventually(lambda: ann.client.state.outbox == 0)
    rows = sqlite3.connect(box)
    assert rows.execute("SELECT count(*) FROM entry").fetchone() == (0,)
    rows.close()


async def test_more_conversations_in_the_outbox_than_a_connect_names(region, ca_file, tmp_path):
    box = tmp_path / "outbox.db"
    chats = [f"d:{'ann':a<64}:{n:b>64}" for n in range(2_000)]
    await stored(
        box,
        [PutLane(chat, "box1", 1, 2, False) for chat in chats],
        [Put(chat, "box1", 1, b"x", 9_000 - n, 0, b"", False) for n, chat in enumerate(chats)],
    )
    fra = region.idcs["fra"]
    fra.told_behind = False  # its answer would be too large for a scripted gateway
    async with App(region, ca_file, outbox=box):
        heads = [head.conversation for head in fra.connects[0].outbox]
        assert set(heads) == set(chats[-len(heads) :])  # the oldest messages
        # Of the longest names: a gateway takes no longer one from whom it does not know.
        assert 250 < len(heads) < OUTBOX_HEADS_MAX
        assert fra.connects[0].ByteSize() < CONNECT_BYTES_MAX
        await eventually(lambda: len(fra.own) == len(chats), 30)  # the others are offered too


async def test_more_acks_than_a_heartbeat_holds_all_arrive(region, ca_file):
    fra = region.idcs["fra"]
    fra.page, fra.told_behind = 500, False
    chats = [f"d:{'ann':a<64}:{n:b>64}" for n in range(2_000)]
    for chat in chats:
        fra.accept(ClientKey("bob", "phone", "box", chat, 1), b"x")
    options = Options(start_timeout_ms=20_000, pull_limit=500)
    async with App(region, ca_file, options=options) as ann:
        assert len(ann.list) == len(chats)
        await eventually(lambda: len(fra.acks) == len(chats), 30)
        assert len(fra.connects) == 1


async def test_a_group_request_that_fits_no_frame_is_refused(region, ca_file):
    async with App(region, ca_file) as ann:
        with pytest.raises(RequestRefused) as refused:
            await ann.client.remove("g:team", [f"{n:u>64}" for n in range(5_000)])
        assert refused.value.code == "too_large"
        await ann.client.send(CHAT, b"x", timeout_ms=20_000)


async def test_a_commit_whose_follow_up_fails_does_not_stop_the_store(tmp_path):
    box = tmp_path / "outbox.db"
    store = SqliteStore(box)
    store.open(lambda: "box1")
    answers: list[Exception | None] = []

    def bad(error: Exception | None) -> None:
        raise ValueError("a defect of whoever is told")

    async with asyncio.timeout(20):
        store.write([PutLane(CHAT, "box1", 1, 2, False)], bad)
        store.write([PutLane(CHAT, "box1", 1, 3, False)], answers.append)
        await eventually(lambda: len(answers) == 1)
        store.write([PutLane("\udc80", "box1", 1, 3, False)], answers.append)  # cannot be bound
        await eventually(lambda: len(answers) == 2)
        store.write([PutLane(CHAT, "box1", 1, 4, False)], answers.append)
        await store.close()
    assert [error is None for error in answers] == [True, False, True]
    again = SqliteStore(box)  # not locked any more
    assert again.open(lambda: "box2").lanes == [PutLane(CHAT, "box1", 1, 4, False)]
    await again.close()
