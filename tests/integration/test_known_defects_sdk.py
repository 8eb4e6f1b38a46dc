"""Known defects of systems like this one, each as a named test against scripted gateways
(the real protocol over TLS on loopback). Each fails when its fix is taken out of the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.proto import client_pb2 as pb
from imcore.tls import gateway_ssl_context
from imcore.words import ClientKey
from services.sdk import NotConnected, Options, SendFailed
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Idc, Region

CHAT = "d:ann:bob"
FAST = {
    "heartbeat_ms": 200,
    "heartbeat_timeout_ms": 10_000,
    "connect_timeout_ms": 10_000,
    "backoff_base_ms": 5,
    "backoff_max_ms": 40,
    "idle_pull_ms": 60_000,
}


@pytest.fixture
async def region(pki_dir: Path) -> AsyncIterator[Region]:
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(FAST))
    await region.start("fra", "iad", "sin")
    yield region
    await region.stop()


def say(idc: Idc, cid: int, uid: str = "bob", conversation: str = CHAT) -> None:
    idc.accept(ClientKey(uid, "phone", "box", conversation, cid), b"%s %d" % (uid.encode(), cid))


async def test_a_lost_last_message_is_found_by_the_heartbeats_answer(region, ca_file):
    """No gap reveals it: nothing comes after it."""
    fra = region.idcs["fra"]
    async with App(region, ca_file) as app:
        say(fra, 1)
        fra.drop_pushes = 1
        say(fra, 2)
        await eventually(lambda: len(app.list) == 2)
        assert app.list == [b"bob 1", b"bob 2"]


async def test_a_push_lost_on_the_way_is_a_hole_that_a_pull_fills(region, ca_file):
    fra = region.idcs["fra"]
    fra.told_behind = False  # no help from heartbeats
    async with App(region, ca_file) as app:
        fra.drop_pushes = 1
        say(fra, 1)
        say(fra, 2)
        await eventually(lambda: len(app.list) == 2)
        assert app.list == [b"bob 1", b"bob 2"]


async def test_more_missed_messages_than_one_page(region, ca_file):
    fra = region.idcs["fra"]
    fra.page = 7
    for conversation in range(20):
        for cid in range(1, 26):
            say(fra, cid, conversation=f"d:ann:u{conversation:02}")
    async with App(region, ca_file) as app:
        assert len(app.list) == 500
        assert all(len(app.client.view(c)) == 25 for c in app.client.conversations())


async def test_equal_timestamps_lose_no_history(region, ca_file):
    """Three origins accepted at the very same HLC, and one page holds only one of them."""
    idcs = list(region.idcs.values())
    for idc in idcs:
        region.clock = 7
        say(idc, 1, uid=idc.origin.idc)
    region.mirror()
    idcs[0].page = 1
    async with App(region, ca_file) as app:
        assert app.list == [b"fra 1", b"iad 1", b"sin 1"]
        assert await app.client.sync_history(CHAT, 10) == 0


async def test_a_client_that_looks_online_and_is_dead(region, ca_file):
    """Bytes still come, heartbeats are not answered."""
    fra = region.idcs["fra"]
    region.parameters["heartbeat_timeout_ms"] = 200
    async with App(region, ca_file) as app:
        fra.mute.add("heartbeat")
        first = fra.connections[0]
        for cid in range(1, 4):
            say(fra, cid)
        await eventually(lambda: first not in fra.connections)
        fra.mute.clear()
        await eventually(lambda: app.connections[-1] != "" and len(app.connections) > 1)
        await app.client.send(CHAT, b"alive")


async def test_endless_reconnects_are_backed_off_from(region, ca_file):
    """A gateway that accepts and drops at once: attempts get rarer, not endless."""
    fra = region.idcs["fra"]
    region.order = ["fra"]
    region.parameters.update(backoff_base_ms=50, backoff_max_ms=2_000)
    fra.drop_connects = True
    app = App(region, ca_file, options=Options(start_timeout_ms=1_000))
    with pytest.raises(NotConnected, match="in time"):
        await app.client.__aenter__()
    assert 2 <= fra.requests["connect"] <= 14


async def test_a_replaced_connection_does_not_reconnect(region, ca_file):
    """Two programs with one device's token would throw each other out for ever."""
    fra = region.idcs["fra"]
    async with App(region, ca_file) as app:
        fra.everybody(pb.Event(close=pb.Close(reason="replaced")))
        await eventually(lambda: app.connections[-1] == "")
        await asyncio.sleep(0.2)
        assert len(fra.connects) == 1
        with pytest.raises(SendFailed, match="took over"):
            await app.client.send(CHAT, b"x")


async def test_a_duplicate_check_is_per_message_not_per_connection(region, ca_file):
    """The ack is lost with the connection: the message is offered again and exists once."""
    fra = region.idcs["fra"]
    async with App(region, ca_file) as app:
        fra.drop_sends = 1
        sent = await app.client.send(CHAT, b"once")
        assert [copy.content for copy in fra.own[CHAT]] == [b"once"]
        assert app.keys == [sent.key]


async def test_a_second_push_does_not_take_the_place_of_the_unacked_first(region, ca_file):
    fra = region.idcs["fra"]
    chats = [f"d:ann:u{n}" for n in range(5)]
    async with App(region, ca_file):
        for chat in chats:
            say(fra, 1, conversation=chat)
            say(fra, 2, conversation=chat)
        await eventually(lambda: all(fra.acks.get(chat, {}).get(fra.origin) == 2 for chat in chats))


async def test_acks_of_a_lost_heartbeat_are_sent_again(region, ca_file):
    fra = region.idcs["fra"]
    async with App(region, ca_file) as app:
        fra.lose_heartbeats = 1
        say(fra, 1)
        await eventually(lambda: len(app.connections) == 3)
        await eventually(lambda: fra.acks.get(CHAT, {}).get(fra.origin) == 1)
