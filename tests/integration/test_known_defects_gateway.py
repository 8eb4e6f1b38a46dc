"""Known defects of systems like this, in the part between im and the client's socket.

Each test fails when its fix is taken out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin
from services.gateway.config import GatewayConfig
from services.ports import GatewayQueue
from services.route.table import RouteTable
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)
CONVERSATION = "d:ann:bob"
FRA, IAD = Origin("fra", 1), Origin("iad", 1)


class LossyQueue:
    """A gateway's queue on which pushes get lost while ``lossy``."""

    def __init__(self, queue: GatewayQueue) -> None:
        self._queue = queue
        self.name = queue.name
        self.lossy = True
        self.lost = 0

    def send(self, connection: int, request_id: int, body: bytes) -> None:
        self._queue.send(connection, request_id, body)

    def push(self, connections: Sequence[int], body: bytes) -> None:
        if self.lossy:
            self.lost += 1
        else:
            self._queue.push(connections, body)

    def quiet(self, connection: int, ms: int) -> None:
        self._queue.quiet(connection, ms)

    def close(self, connection: int, reason: str, retry_after_ms: int = 0) -> None:
        self._queue.close(connection, reason, retry_after_ms)


def lossy(front: Front) -> LossyQueue:
    [gateway] = front.gateways
    queue = LossyQueue(gateway)
    front.state.gateways[gateway.name] = queue
    return queue


def say(front: Front, content: bytes) -> None:
    front.im.push(CONVERSATION, [front.im.store(CONVERSATION, content)])


def heartbeat(seq: int | None = None) -> pb.Request:
    request = pb.Request()
    request.heartbeat.SetInParent()
    if seq is not None:
        ack = request.heartbeat.acks.add(conversation=CONVERSATION)
        ack.heads.add(origin=pb.Origin(idc="fra", incarnation=1), seq=seq)
    return request


async def test_a_push_lost_between_business_and_gateway():
    """Defect: a push lost between business and gateway. Fix: the session owes an ack for what was
    pushed, and a signal names it until the ack comes."""
    async with Front(KEYS, speed=10) as front:
        client, _ = await front.connect("ann")
        queue = lossy(front)
        say(front, b"lost")
        assert queue.lost == 1
        queue.lossy = False
        signal = (await client.event("signal")).signal
        assert (signal.conversation, signal.heads[0].seq) == (CONVERSATION, 1)
        pulled = await client.ask(pb.Request(pull=pb.Pull(conversation=CONVERSATION)))
        assert pulled.pull_ok.entries[0].message.content == b"lost"


async def test_a_lost_last_message_that_no_gap_reveals():
    """Defect: a lost last message that no gap reveals. Fix: the answer to a heartbeat carries what
    the session should have, not only that it is alive."""
    async with Front(KEYS, speed=10) as front:
        client, _ = await front.connect("ann")
        say(front, b"first")
        await client.event("push")
        await client.ask(heartbeat(seq=1))
        lossy(front)  # for good: no signal comes through either
        say(front, b"last")
        await asyncio.sleep(0.11)  # younger ones may still be on their way
        answer = (await client.ask(heartbeat(seq=1))).heartbeat_ok
        [behind] = answer.behind
        assert behind.conversation == CONVERSATION
        assert [(p.origin.idc, p.seq) for p in behind.heads] == [("fra", 2)]


async def test_a_second_push_overwriting_the_unacked_first_one():
    """Defect: a second push overwriting the un-acked first one. Fix: what is owed is a vector
    merged by maximum, so a push that knows less (of another origin, or from another partition's
    turn) takes nothing away."""
    async with Front(KEYS, speed=10) as front:
        client, _ = await front.connect("ann")
        lossy(front)
        front.state.push_entries(CONVERSATION, ["ann"], [pb.Entry(seq=3)], {FRA: 3}, 0)
        front.state.push_entries(CONVERSATION, ["ann"], [pb.Entry(seq=1)], {IAD: 1}, 0)
        await asyncio.sleep(0.11)
        [behind] = (await client.ask(heartbeat())).heartbeat_ok.behind
        assert {p.origin.idc: p.seq for p in behind.heads} == {"fra": 3, "iad": 1}


async def test_a_client_that_looks_online_and_is_dead():
    """Defect: a client that looks online and is dead: its socket stands, nobody is behind it.
    Fix: a connection from which no frame came for two heartbeats and a time-out is closed, and
    after its grace its route goes."""
    async with Front(KEYS, limits=GatewayConfig(idle_ms=150, tick_ms=10)) as front:
        dead, _ = await front.connect("ann")
        assert (await dead.event("close", timeout_s=3)).close.reason == "idle"
        await dead.gone()
        assert [session.connected for session in front.state.sessions()] == [False]


async def test_endless_reconnects_of_two_connections_that_replace_each_other():
    """Defect: endless reconnects: two connections of one device throw each other out for ever.
    Fix: connections are ordered by epoch; the older is told `replaced` whenever it comes, and the
    newer is not touched."""
    async with Front(KEYS) as front:
        new, _ = await front.connect("ann", epoch=2)
        for _ in range(3):
            old = await front.dial()
            old.send(front.hello("ann", epoch=1))
            assert (await old.event("close")).close.reason == "replaced"
        assert not (await new.ask(heartbeat())).HasField("error")
        assert not new.closed.done()


def test_routes_of_a_dead_gateway_still_used():
    """Defect: routes of a dead gateway still used. Fix: nobody removes them; they are judged when
    read, by the gateway's lease and the policy."""
    table = RouteTable()
    alive = {("fra", "fra-gw1.1"), ("iad", "iad-gw1.1")}
    for uid, origin, gateway in (("ann", FRA, "fra-gw1.1"), ("bob", IAD, "iad-gw1.1")):
        route = oplog.RouteOp(uid=uid, device="phone", connection_epoch=1, gateway=gateway)
        table.apply(origin, 10, route)

    def usable(idc: str, gateway: str) -> bool:
        return (idc, gateway) in alive

    assert table.idcs_of(["ann", "bob"], usable) == {"fra": ["ann"], "iad": ["bob"]}
    alive.discard(("iad", "iad-gw1.1"))  # its lease ended
    assert table.idcs_of(["ann", "bob"], usable) == {"fra": ["ann"]}
