"""The outbox file when the disk fails: what the store could not take is told or written later."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.convert import origin_pb
from imcore.proto import client_pb2 as pb
from imcore.tls import gateway_ssl_context
from services.sdk import ConnectionChanged, SendFailed
from services.sdk.core.events import Event
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


def rows(box: Path) -> list[tuple[int, bool]]:
    """Cids in the file, and whether each was acked."""
    db = sqlite3.connect(box)
    found = db.execute("SELECT cid, length(placed) > 0 FROM entry ORDER BY cid").fetchall()
    db.close()
    return [(cid, bool(acked)) for cid, acked in found]


def full(store: SqliteStore, is_full: bool) -> None:
    """The file may not grow: sqlite's own word for a full disk."""
    assert store._db is not None
    store._db.execute(f"PRAGMA max_page_count = {1 if is_full else 1_000_000}")


async def test_what_else_was_in_a_failed_batch_is_written_later(region, ca_file, tmp_path):
    """A message that left the outbox would be in the file again after a restart."""
    fra, box = region.idcs["fra"], tmp_path / "outbox.db"
    store = SqliteStore(box)
    async with App(region, ca_file, outbox=store) as ann:
        await ann.client.send(CHAT, b"1")
        await eventually(lambda: rows(box) == [(1, True)])
        full(store, True)
        big = asyncio.ensure_future(ann.client.send(CHAT, bytes(60_000)))
        event = pb.Replicated(origin=origin_pb(fra.origin), partition=0, lsn=fra.lsn)
        ann.client._sender.replicated(event)  # in the same turn, so in the same batch
        with pytest.raises(SendFailed) as failed:
            await big
        assert failed.value.code == "outbox_unwritable" and rows(box) == [(1, True)]
        full(store, False)
        await eventually(lambda: rows(box) == [])
        await ann.client.send(CHAT, b"2")
        assert [copy.key.cid for copy in fra.own[CHAT]] == [1, 2]


async def test_a_store_that_fails_for_ever_does_not_keep_a_client_from_closing(
    region, ca_file, tmp_path
):
    box = tmp_path / "outbox.db"
    store = SqliteStore(box)
    async with App(region, ca_file, outbox=store) as ann:
        await ann.client.send(CHAT, b"1")
        full(store, True)
        with pytest.raises(SendFailed):
            await ann.client.send(CHAT, bytes(60_000))
    async with App(region, ca_file, outbox=box) as again:
        await again.client.send(CHAT, b"2")


async def test_an_epoch_that_cannot_be_stored_is_tried_again(region, ca_file, tmp_path):
    """Without it no connection may be made; the client says so and does not give up."""
    fra, store = region.idcs["fra"], SqliteStore(tmp_path / "outbox.db")
    async with App(region, ca_file, outbox=store) as ann:
        reasons: list[str] = []

        def told(event: Event) -> None:
            if isinstance(event, ConnectionChanged):
                reasons.append(event.reason)

        ann.client.on(told)
        assert store._db is not None
        store._db.execute("PRAGMA query_only = 1")
        fra.connections[0].abort()
        await eventually(lambda: any("cannot be written" in reason for reason in reasons))
        assert len(fra.connects) == 1
        store._db.execute("PRAGMA query_only = 0")
        await ann.client.send(CHAT, b"x", timeout_ms=4_000)


async def test_what_messages_refer_to_is_in_the_file_also_in_one_of_before(
    region, ca_file, tmp_path
):
    """Such a file has no column for it; what it holds is sent on as it was hashed."""
    fra, box = region.idcs["fra"], tmp_path / "outbox.db"
    first = SqliteStore(box)
    first.open(lambda: "box1")
    await first.close()
    db = sqlite3.connect(box)
    db.execute("ALTER TABLE entry DROP COLUMN refs")
    db.execute("ALTER TABLE entry DROP COLUMN encrypted")
    db.execute("INSERT INTO lane VALUES (?, 'box1', 1, 2, 0)", (CHAT,))
    db.execute("INSERT INTO entry VALUES (?, 'box1', 1, x'31', 0, 0, x'', 0)", (CHAT,))
    db.commit()
    db.close()
    fra.mute.add("send")
    async with App(region, ca_file, outbox=SqliteStore(box)) as ann:
        await eventually(lambda: len(fra.sends) == 1)
        assert (fra.sends[0].content, fra.sends[0].refs) == (b"1", b"")
        reply = f"bob/phone/o1/1/{CHAT}"
        sending = asyncio.ensure_future(ann.client.send(CHAT, b"2", reply=reply, mentions=["bob"]))
        await eventually(lambda: len(rows(box)) == 2)
    with pytest.raises(SendFailed):
        await sending
    fra.mute.clear()
    async with App(region, ca_file, outbox=SqliteStore(box)) as ann:
        await eventually(lambda: len(ann.list) == 2)
        told = ann.client.view(CHAT)[-1]
        assert (told.content, told.reply, told.mentions) == (b"2", reply, ("bob",))
