"""A client blocks nothing but its own connection, whatever it sends: over real sockets.

What that costs is counted (turns of the loop, answers, bytes), or told by a clock of the test's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any

import pytest

from imcore import frame
from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.runtime import ManualClock, SystemClock
from services.gateway.config import GatewayConfig
from services.gateway.intake import SMALL_BYTES
from services.gateway.server import Gateway
from services.gateway.testing import FrameClient
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)
CHAT = "d:ann:bob"
HEARTBEAT = pb.Request(heartbeat=pb.Heartbeat())
EMPTY = frame.encode(frame.REQUEST, 1, b"")
READ_BYTES = 256 * 1024  # what a loop reads at a time
PATIENT = 60_000  # ms: nobody is ended for being late


async def served(client: FrameClient, times: int = 1) -> None:
    for _ in range(times):
        assert not (await client.ask(HEARTBEAT)).HasField("error")


async def until(condition: Callable[[], object], bystander: FrameClient) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await served(bystander)


def standing_still(limits: GatewayConfig) -> tuple[Front, Gateway, ManualClock]:
    """A gateway for which time passes as the test says."""
    front, clock = Front(KEYS), ManualClock()
    gateway = Gateway("fra-gw-1", front.state, clock, limits)
    front.gateways = [gateway]
    return front, gateway, clock


def of(gateway: Gateway, client: FrameClient) -> Any:
    """The gateway's side of it."""
    name = client.transport.get_extra_info("sockname")
    [found] = [
        each
        for each in gateway._connections.values()
        if each._transport is not None and each._transport.get_extra_info("peername") == name
    ]
    return found


# ---------------------------------------------------------------------------------- WebSocket


async def page(front: Front) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.gateways[0].port)
    key = base64.b64encode(os.urandom(16)).decode()
    head = f"Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
    writer.write(f"GET / HTTP/1.1\r\n{head}Sec-WebSocket-Version: 13\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    return reader, writer


@pytest.mark.parametrize("opcode", [0x9, 0xA, 0x2], ids=["pings", "pongs", "empty frames"])
async def test_websocket_frames_that_bring_nothing_end_their_connection(opcode: int):
    limits = GatewayConfig(first_frame_ms=PATIENT)
    async with Front(KEYS, limits=limits) as front:
        bob, _ = await front.connect("bob")
        reader, writer = await page(front)
        writer.write((bytes((0x80 | opcode, 0x80)) + bytes(4)) * (READ_BYTES // 6))
        answered = 0
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionResetError):  # what it sent was not read
                while data := await reader.read(READ_BYTES):
                    answered += len(data)
        # A step's worth, and what it may send: not 43,690.
        assert answered < 2_000 and front.gateways[0].counters.rubbish == 1
        writer.close()
        await served(bob)


async def test_pings_at_a_low_rate_are_answered_for_ever():
    limits = GatewayConfig(first_frame_ms=PATIENT, controls_per_s=1_000.0, controls_burst=5)
    async with Front(KEYS, limits=limits) as front:
        reader, writer = await page(front)
        for _ in range(50):
            writer.write(b"\x89\x80" + bytes(4))
            assert await asyncio.wait_for(reader.readexactly(2), 5) == b"\x8a\x00"
            await asyncio.sleep(0.002)
        writer.close()


# ---------------------------------------------------------------------- what a read may cost


class Costly(SystemClock):
    """Nothing costs CPU but what a test says."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s = 0.0

    def cpu(self) -> float:
        return self.cpu_s


class Turns:
    """How many requests of a connection come to the state role in each turn of the loop."""

    def __init__(self, front: Front, clock: Costly, cost_s: float) -> None:
        self.by_turn: Counter[int] = Counter()
        self._turn = 0
        self._received = front.state.received
        self._clock = clock
        self._cost_s = cost_s
        self.watched = 0
        front.state.received = self.received  # type: ignore[method-assign]
        self._next()

    def _next(self) -> None:
        self._turn += 1
        asyncio.get_running_loop().call_soon(self._next)

    def received(self, gateway: str, connection: int, request_id: int, body: bytes) -> None:
        if connection == self.watched:
            self.by_turn[self._turn] += 1
            self._clock.cpu_s += self._cost_s
        self._received(gateway, connection, request_id, body)


async def test_one_read_of_many_requests_is_taken_in_many_turns():
    limits = GatewayConfig(requests_per_s=1e9, requests_burst=10**9)
    async with Front(KEYS, limits=limits) as front:
        [gateway] = front.gateways
        gateway.clock = clock = Costly()
        bob, _ = await front.connect("bob")
        bad, _ = await front.connect("ann")
        turns = Turns(front, clock, 10e-6)
        turns.watched = of(gateway, bad).number
        requests = 3_000
        bad.transport.write(
            frame.encode(frame.REQUEST, 9, HEARTBEAT.SerializeToString()) * requests
        )
        await until(lambda: turns.by_turn.total() == requests, bob)
        assert max(turns.by_turn.values()) < 1_000


async def test_a_client_whose_bytes_are_dear_gets_its_share_and_is_served_later():
    limits = GatewayConfig(requests_per_s=1e9, requests_burst=10**9)
    async with Front(KEYS, limits=limits) as front:
        [gateway] = front.gateways
        gateway.clock = clock = Costly()
        bob, _ = await front.connect("bob")
        bad, _ = await front.connect("ann")
        turns = Turns(front, clock, 0.15)
        turns.watched = of(gateway, bad).number
        many = frame.encode(frame.REQUEST, 9, HEARTBEAT.SerializeToString()) * 60
        assert len(many) > SMALL_BYTES
        bad.transport.write(many)
        await until(lambda: turns.by_turn.total() > 0, bob)
        waits = bad.send(HEARTBEAT)
        await served(bob, 20)
        assert not waits.done()
        assert not (await asyncio.wait_for(waits, 5)).HasField("error")
        assert gateway.counters.limited > 0


async def test_a_stranger_whose_bytes_are_dear_is_ended():
    limits = GatewayConfig(first_frame_ms=PATIENT)
    async with Front(KEYS, limits=limits) as front:
        [gateway] = front.gateways
        gateway.clock = clock = Costly()
        bob, _ = await front.connect("bob")
        bad = await front.dial()
        await bad.spoken
        connection = of(gateway, bad)
        feed: Callable[[bytes], list[frame.Frame]] = connection._decoder.feed

        def dear(data: bytes) -> list[frame.Frame]:
            clock.cpu_s += 0.01
            return feed(data)

        connection._decoder.feed = dear
        crumb = frame.HEADER.pack(frame.REQUEST, 1, 1, 1) + b"x"
        bad.transport.write(crumb * (READ_BYTES // len(crumb) // 2))
        await bad.gone()
        assert (await bad.event("close")).close.reason == "protocol"
        assert gateway.counters.rubbish == 1
        await served(bob)


async def test_requests_beyond_the_limit_cost_a_step_until_the_next_tick():
    limits = GatewayConfig(requests_per_s=1.0, requests_burst=20, tick_ms=PATIENT)
    async with Front(KEYS, limits=limits) as front:
        [gateway] = front.gateways
        bad, _ = await front.connect("ann")
        bad.transport.write(EMPTY * (READ_BYTES // len(EMPTY)))
        for number in range(20):
            await front.connect("bob", epoch=number + 1)
        assert 0 < gateway.counters.limited < 600  # not 32,748
        bad.abort()


async def test_who_does_not_read_is_not_read_from_and_not_called_idle():
    limits = GatewayConfig(push_bytes_max=16 * 1024, stuck_ms=PATIENT, requests_burst=10**6)
    front, gateway, clock = standing_still(limits)
    async with front:
        deaf, _ = await front.connect("ann")
        deaf.transport.pause_reading()
        bob, _ = await front.connect("bob")
        send = pb.Request(send=pb.Send(conversation=CHAT, cid=1, content=bytes(60_000)))
        for _ in range(1_000):
            if gateway.counters.dropped:
                break
            await bob.ask(send)
        turns = Turns(front, Costly(), 0.0)
        turns.watched = of(gateway, deaf).number
        answers = [deaf.send(HEARTBEAT) for _ in range(5)]
        for _ in range(80):  # twice what makes others idle
            clock.advance(0.3)
            gateway._tick()
            await served(bob)
        assert not turns.by_turn.total() and not gateway.counters.idle
        deaf.transport.resume_reading()
        async with asyncio.timeout(5):
            await asyncio.gather(*answers)
        clock.advance(0.3)
        gateway._tick()
        assert not gateway.counters.idle


# ------------------------------------------------------------------------------ before Connect


async def test_who_is_stalled_by_others_loses_no_more_than_the_stalls():
    """The first message must be in by its time however busy the process is."""
    front, gateway, clock = standing_still(GatewayConfig(first_frame_ms=5_000))
    async with front:
        silent = await front.dial()
        await silent.spoken
        stalls = 0
        while not gateway.counters.idle and stalls < 100:
            stalls += 1
            clock.advance(0.6)
            gateway._tick()
        assert stalls <= 11  # half a second counts of each
        await silent.gone()


async def test_a_first_message_of_a_stranger_is_no_longer_than_a_connect():
    limits = GatewayConfig(first_frame_ms=PATIENT)
    async with Front(KEYS, limits=limits) as front:
        bob, _ = await front.connect("bob")
        stranger = await front.dial()
        whole = frame.encode(frame.REQUEST, 1, bytes(200_000))
        stranger.transport.write(whole[:120_000])
        await stranger.gone()
        assert front.gateways[0].counters.rubbish == 1
        send = pb.Request(send=pb.Send(conversation=CHAT, cid=1, content=bytes(200_000)))
        assert not (await bob.ask(send)).HasField("error")  # who is known may send such


async def test_who_is_known_may_let_his_long_message_follow_his_connect_at_once():
    async with Front(KEYS) as front:
        ann = await front.dial()
        ann.send(front.hello("ann"))
        send = pb.Request(send=pb.Send(conversation=CHAT, cid=1, content=bytes(90_000)))
        assert (await ann.ask(send)).send_ack.placed.seq == 1


# ------------------------------------------------------------------------- many connections


async def dial_from(front: Front, address: str) -> FrameClient:
    loop = asyncio.get_running_loop()
    port = front.gateways[0].port
    _, client = await loop.create_connection(
        FrameClient, "127.0.0.1", port, local_addr=(address, 0)
    )
    client.transport.write(frame.client_preface())
    return client


async def test_one_address_has_so_many_connections_and_others_come_in():
    limits = GatewayConfig(connections_of_address=2)
    async with Front(KEYS, limits=limits) as front:
        await front.connect("ann")
        await front.connect("bob")
        third = await front.dial()
        close = (await third.event("close")).close
        assert (close.reason, close.retry_after_ms) == ("overloaded", 1_000)
        other = await dial_from(front, "127.0.0.2")
        assert (await other.ask(front.hello("eve"))).connect_ok.session


async def test_behind_a_proxy_there_may_be_more():
    networks = (ip_network("127.0.0.0/31"),)
    limits = GatewayConfig(connections_of_address=2, shared=networks)
    async with Front(KEYS, limits=limits) as front:
        for number in range(5):
            await front.connect(f"u{number}")


@pytest.mark.parametrize(
    "limits",
    [
        GatewayConfig(first_frame_ms=PATIENT, connections_of_address=3),
        GatewayConfig(first_frame_ms=PATIENT, connections_max=3),
    ],
    ids=["of an address", "of all"],
)
async def test_silent_connections_keep_nobody_out(limits: GatewayConfig):
    async with Front(KEYS, limits=limits) as front:
        silent = [await front.dial() for _ in range(3)]
        for each in silent:
            await each.spoken
        for number in range(3):
            await front.connect(f"u{number}")
            await silent[number].gone()  # the one that was silent for longest
        fourth = await front.dial()
        assert (await fourth.event("close")).close.reason == "overloaded"


# ------------------------------------------------------------------------------------ tokens


async def test_one_token_has_a_few_pull_only_connections_and_no_more():
    async with Front(KEYS) as front:
        main, _ = await front.connect("ann")
        side: dict[str, Any] = {"mode": pb.CONNECT_MODE_PULL_ONLY, "epoch": 0}
        beside = [(await front.connect("ann", **side))[0] for _ in range(10)]
        for old in beside[:6]:
            assert (await old.event("close")).close.reason == "replaced"
            await old.gone()
        for each in (main, *beside[6:]):
            await served(each)
        assert front.state.pull_only_count() == 4
        await front.connect("ann", device="desk", **side)  # another device's own
        assert front.state.pull_only_count() == 5
        beside[6].abort()
        await until(lambda: front.state.pull_only_count() == 4, main)
        again, _ = await front.connect("ann", **side)
        await served(again)
        await served(beside[7])


async def test_pull_only_connections_count_before_their_connect_is_answered():
    async with Front(KEYS) as front:
        bob, _ = await front.connect("bob")
        front.im.connect_gate.clear()
        hello = front.hello("ann", epoch=0, mode=pb.CONNECT_MODE_PULL_ONLY)
        beside = []
        for _ in range(10):
            beside.append(await front.dial())
            beside[-1].send(hello)
        await until(lambda: len(front.gateways[0]) == 5, bob)
        front.im.connect_gate.set()
        await until(lambda: front.state.pull_only_count() == 4, bob)
