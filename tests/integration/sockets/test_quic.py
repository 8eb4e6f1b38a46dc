"""The client protocol by QUIC, over real UDP sockets."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicPacketType, QuicStreamFrame, pull_quic_header

from imcore import frame, quic
from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.quic import client_configuration, client_connection, server_configuration
from imcore.tls import client_ssl_context, gateway_ssl_context
from services.gateway.config import GatewayConfig
from services.gateway.quic import QuicListener
from services.gateway.server import Gateway
from services.gateway.testing import FrameClient
from services.sdk.testing.app import eventually
from services.state.testing import Front
from tests.integration.udp import Line

KEYS = RegionKeys({1: b"k" * 32}, 1)
CHAT = "d:ann:bob"


def made(pki_dir: Path, limits: GatewayConfig | None = None, gateways: int = 1) -> Front:
    tls = gateway_ssl_context(pki_dir, "fra"), client_ssl_context(pki_dir / "ca.pem")
    configured = server_configuration(pki_dir, "fra")
    return Front(KEYS, tls, limits=limits, gateways=gateways, quic=configured)


@pytest.fixture
async def front(pki_dir: Path) -> AsyncIterator[Front]:
    async with made(pki_dir) as front:
        yield front


def listener(gateway: Gateway) -> QuicListener:
    assert gateway.quic is not None
    return gateway.quic


def port(front: Front) -> int:
    return front.gateways[0].port


async def say(client: FrameClient, content: bytes, timeout_s: float = 5.0) -> pb.Response:
    send = pb.Request(send=pb.Send(conversation=CHAT, cid=1, content=content))
    return await client.ask(send, timeout_s)


async def heard(client: FrameClient, timeout_s: float = 5.0) -> bytes:
    event = await client.event("push", timeout_s)
    return event.push.entries[0].message.content


@pytest.mark.parametrize("size", [1, 3_000, 90_000])
async def test_two_chat_by_it_and_by_tls_on_the_same_port(front: Front, size: int):
    ann, _ = await front.connect("ann", quic_port=port(front))
    bob, _ = await front.connect("bob")
    content = os.urandom(size)
    assert (await say(ann, content)).send_ack.placed.seq == 1
    assert await heard(bob) == content
    await say(bob, b"hello")
    assert await heard(ann) == content  # its own
    assert await heard(ann) == b"hello"
    assert listener(front.gateways[0]).counters.quic == 1
    standing = front.gateways[0].by_transport()
    assert standing == {"tcp": 1, "websocket": 0, "polling": 0, "quic": 1}


async def test_a_lost_connection_is_gone_on_with_by_the_other_way(front: Front):
    ann, ok = await front.connect("ann", quic_port=port(front))
    ann.abort()
    await eventually(lambda: not len(front.gateways[0]))
    again, resumed = await front.connect("ann", 2, resume_token=ok.resume_token)
    assert resumed.resumed
    await say(again, b"x")
    third, resumed = await front.connect(
        "ann", 3, resume_token=resumed.resume_token, quic_port=port(front)
    )
    assert resumed.resumed
    assert (await again.event("close")).close.reason == "replaced"
    await say(third, b"y")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
async def test_a_nat_that_forgets_costs_no_connection(front: Front, host: str):
    gateway = front.gateways[0]
    async with Line(gateway.port) as line:
        ann, _ = await front.connect("ann", quic_port=line.port)
        bob, _ = await front.connect("bob")
        for turn in range(1, 4):
            line.rebind(host if turn % 2 else "127.0.0.1")
            await say(ann, b"%d" % turn)  # it knows nothing of it
            while await heard(bob) != b"%d" % turn:
                pass  # what it said itself is pushed to it too
            await say(bob, b"back")
            while await heard(ann) != b"back":
                pass
        assert len({*line.sources}) == 4
        assert listener(gateway).counters.migrated == 3
        assert len(front.im.sessions) == 2 and len(gateway) == 2
        assert not ann.closed.done()


async def test_a_device_that_changes_its_network_goes_on(front: Front):
    ann, _ = await front.connect("ann", quic_port=port(front))
    bob, _ = await front.connect("bob")
    assert ann.quic is not None
    [before] = [one.peer_address for one in front.gateways[0]._connections.values()][:1]
    assert before == "127.0.0.1"
    ann.quic.change_socket()
    # Nothing is sent by the application: what is pushed finds it all the same.
    await eventually(lambda: listener(front.gateways[0]).counters.migrated == 1)
    await say(bob, b"hello")
    assert await heard(ann) == b"hello"
    assert len(front.im.sessions) == 2


async def test_a_line_that_loses_a_tenth_of_all_brings_everything_in_order(front: Front):
    async with Line(port(front), loss=0.1) as line:
        async with asyncio.timeout(30):
            while True:
                try:  # a handshake that has lost too much is tried again, as an SDK does
                    ann, _ = await front.connect("ann", quic_port=line.port)
                    break
                except TimeoutError:
                    continue
        bob, _ = await front.connect("bob")
        said = [os.urandom(700) for _ in range(200)]
        for content in said:
            ann.send(pb.Request(send=pb.Send(conversation=CHAT, cid=1, content=content)))
        assert [await heard(bob, 20.0) for _ in said] == said
        assert [await heard(ann, 20.0) for _ in said] == said


# ------------------------------------------------------------------------------------- the end


async def test_a_gateway_that_stops_says_so(front: Front):
    ann, _ = await front.connect("ann", quic_port=port(front))
    stopping = asyncio.create_task(front.gateways[0].stop())
    assert (await ann.event("close")).close.reason == "shutdown"
    await ann.gone()
    async with asyncio.timeout(5):
        await stopping


async def test_none_is_handed_to_a_successor(front: Front):
    ann, _ = await front.connect("ann", quic_port=port(front))
    gateway = front.gateways[0]
    gateway.freeze()
    await gateway.stop_others(gateway.numbers())
    assert (await ann.event("close")).close.reason == "shutdown"
    await ann.gone()
    assert not gateway.hand_on(lambda number: "a session")


async def test_one_that_is_silent_is_idle_and_one_that_shakes_no_hands_is_forgotten(pki_dir: Path):
    limits = GatewayConfig(first_frame_ms=300, idle_ms=500)
    async with made(pki_dir, limits) as front:
        mute = await front.dial(quic_port=port(front))
        assert (await mute.event("close")).close.reason == "idle"
        ann, _ = await front.connect("ann", quic_port=port(front))
        assert (await ann.event("close")).close.reason == "idle"
        await ann.gone()
        # The first half of a handshake, and nothing more.
        context = client_ssl_context(pki_dir / "ca.pem")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.bind(("127.0.0.1", 0))
            await begin(stranger, port(front), client_configuration(context, "127.0.0.1"))
            found = listener(front.gateways[0])
            await eventually(lambda: len(found._shaking) == 1)
            await eventually(lambda: not found._shaking and not found._by_id)


async def test_a_client_that_is_gone_without_a_word_is_given_up(pki_dir: Path):
    async with (
        made(pki_dir, GatewayConfig(user_timeout_ms=700)) as front,
        Line(port(front)) as line,
    ):
        await front.connect("ann", quic_port=line.port)
        bob, _ = await front.connect("bob")
        await asyncio.sleep(1.0)
        assert len(front.gateways[0]) == 2  # silence alone is nobody's end
        line.blocked = True
        await say(bob, b"are you there?")
        await eventually(lambda: len(front.gateways[0]) == 1)


async def test_what_a_stranger_sends_for_him_is_no_sign_of_life(pki_dir: Path):
    async with (
        made(pki_dir, GatewayConfig(user_timeout_ms=700)) as front,
        Line(port(front)) as line,
        asyncio.timeout(10),
    ):
        await front.connect("ann", quic_port=line.port)
        bob, _ = await front.connect("bob")
        line.blocked = True
        await say(bob, b"are you there?")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            while len(front.gateways[0]) == 2:
                for ident in listener(front.gateways[0])._by_id:
                    forged = b"\x40" + ident + os.urandom(40)
                    stranger.sendto(forged, ("127.0.0.1", port(front)))
                await asyncio.sleep(0.1)


# ---------------------------------------------------------------------------------- strangers


async def begin(stranger: socket.socket, to: int, configuration: object) -> None:
    """A handshake, up to where the client's address is shown to be his."""
    loop = asyncio.get_running_loop()
    mine = client_connection(configuration)  # type: ignore[arg-type]
    address = ("127.0.0.1", to)
    mine.connect(address, loop.time())
    for _ in range(2):
        for data, _ in mine.datagrams_to_send(loop.time()):
            stranger.sendto(data, address)
        async with asyncio.timeout(5):
            data = await loop.sock_recv(stranger, 2_000)
        mine.receive_datagram(data, address, loop.time())


def initial(context: object, to: int) -> bytes:
    mine = client_connection(client_configuration(context, "127.0.0.1"))  # type: ignore[arg-type]
    mine.connect(("127.0.0.1", to), 0.0)
    return mine.datagrams_to_send(0.0)[0][0]


async def drain(loop: asyncio.AbstractEventLoop, stranger: socket.socket) -> list[bytes]:
    found = []
    await asyncio.sleep(0.1)
    while True:
        try:
            found.append(stranger.recv(2_000))
        except BlockingIOError:
            return found


async def test_whoever_forges_his_address_gets_less_than_he_sends_and_costs_no_memory(
    front: Front, pki_dir: Path
):
    context = client_ssl_context(pki_dir / "ca.pem")
    loop = asyncio.get_running_loop()
    found = listener(front.gateways[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.bind(("127.0.0.1", 0))
        sent = 0
        for _ in range(20):
            data = initial(context, port(front))
            for _ in range(10):
                stranger.sendto(data, ("127.0.0.1", port(front)))
                sent += len(data)
            await asyncio.sleep(0)
        got = await drain(loop, stranger)
    kinds = {pull_quic_header(Buffer(data=each)).packet_type for each in got}
    assert kinds == {QuicPacketType.RETRY}
    assert 0 < sum(map(len, got)) < sent / 3
    assert not found._by_id and not found._shaking
    # And who comes properly is served.
    ann, _ = await front.connect("ann", quic_port=port(front))
    await say(ann, b"hello")


async def test_beyond_the_rate_strangers_get_no_answer(pki_dir: Path):
    context = client_ssl_context(pki_dir / "ca.pem")
    limits = GatewayConfig(quic_retries_per_s=10.0)
    async with made(pki_dir, limits) as front:
        data = initial(context, port(front))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.bind(("127.0.0.1", 0))
            for _ in range(100):
                stranger.sendto(data, ("127.0.0.1", port(front)))
            got = await drain(asyncio.get_running_loop(), stranger)
        assert 10 <= len(got) <= 30
        assert listener(front.gateways[0]).counters.dropped_datagrams >= 70


async def test_another_version_is_told_ours_and_small_datagrams_nothing(front: Front):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.bind(("127.0.0.1", 0))
        head = b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(8) + b"\x08" + bytes(8)
        to = ("127.0.0.1", port(front))
        stranger.sendto(head + bytes(100), to)
        stranger.sendto(head + bytes(1_200), to)
        stranger.sendto(b"\xc0\x00\x00\x00\x00\x08" + bytes(8) + b"\x08" + bytes(1_300), to)
        [answer] = await drain(asyncio.get_running_loop(), stranger)
    assert len(answer) < 100
    assert pull_quic_header(Buffer(data=answer)).packet_type is QuicPacketType.VERSION_NEGOTIATION


async def test_rubbish_costs_nobody_anything(front: Front):
    gateway, rng = front.gateways[0], random.Random(1)
    async with Line(gateway.port) as line:
        ann, _ = await front.connect("ann", quic_port=line.port)
        bob, _ = await front.connect("bob", quic_port=gateway.port)
        ids = list(listener(gateway)._by_id)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for number in range(2_000):
                data = bytearray(rng.randbytes(rng.choice([0, 1, 7, 20, 60, 1_200, 1_400])))
                if number % 2 and len(data) > 9:  # to a connection that is there
                    data[0] = rng.choice([0x40, 0xC0 | rng.randrange(64)])
                    data[1:9] = rng.choice(ids)
                stranger.sendto(data, ("127.0.0.1", gateway.port))
                if number % 50 == 0:
                    await asyncio.sleep(0.001)
        await say(ann, b"hello")
        assert await heard(bob) == b"hello"
        assert len(gateway) == 2


BAD = {
    "rubbish": b"rubbish",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "a poll": b"POST /poll/open HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "too long": frame.client_preface() + b"\x01\x00\xff\xff" + bytes(1_000),
}


@pytest.mark.parametrize("name", BAD)
async def test_who_breaks_the_protocol_loses_his_connection_alone(front: Front, name: str):
    bob, _ = await front.connect("bob", quic_port=port(front))
    bad = await front.dial(speak=False, quic_port=port(front))
    bad.transport.write(BAD[name])
    await bad.gone()
    assert front.gateways[0].counters.rubbish == 1
    assert len(front.gateways[0]) == 1 and not bob.closed.done()


async def test_bytes_far_ahead_reserve_no_more_than_the_window(front: Front):
    evil, _ = await front.connect("ann", quic_port=port(front))
    [theirs] = {each.quic for each in listener(front.gateways[0])._by_id.values()}
    bob, _ = await front.connect("bob", quic_port=port(front))
    assert evil.quic is not None
    stream = evil.quic.transport.quic.stream()
    assert stream is not None

    def far_ahead(max_size: int, max_offset: int | None = None) -> QuicStreamFrame:
        """One byte at the end of what is allowed: doubled, that would be without end."""
        stream.sender.buffer_is_empty = True
        return QuicStreamFrame(data=b"x", offset=stream.max_stream_data_remote - 1)

    stream.sender.get_frame = far_ahead  # type: ignore[method-assign]
    for _ in range(20):
        stream.sender.buffer_is_empty = False
        evil.quic.transport.transmit()
        await asyncio.sleep(0.02)
    found = theirs.stream()
    assert found is not None
    assert quic.WINDOW // 2 < len(found.receiver._buffer) <= quic.WINDOW
    assert stream.max_stream_data_remote <= 2 * quic.WINDOW
    await say(bob, b"x")


async def test_crumbs_cost_the_connection_of_who_sends_them(front: Front):
    evil, _ = await front.connect("ann", quic_port=port(front))
    bob, _ = await front.connect("bob", quic_port=port(front))
    assert evil.quic is not None
    stream = evil.quic.transport.quic.stream()
    assert stream is not None
    at = stream.sender.highest_offset

    def crumb(max_size: int, max_offset: int | None = None) -> QuicStreamFrame:
        nonlocal at
        at += 2
        stream.sender.buffer_is_empty = True
        return QuicStreamFrame(data=b"x", offset=at)

    stream.sender.get_frame = crumb  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        while not evil.closed.done():
            stream.sender.buffer_is_empty = False
            evil.quic.transport.transmit()
            await asyncio.sleep(0)
    assert at < 4 * quic.PIECES_MAX
    await say(bob, b"x")


async def test_what_one_peer_sends_takes_no_more_than_its_share_of_the_cpu(front: Front):
    ann, _ = await front.connect("ann", quic_port=port(front))
    bob, _ = await front.connect("bob", quic_port=port(front))
    found = listener(front.gateways[0])
    [theirs] = {each for each in found._by_id.values() if each._peer[1] == own_port(ann)}
    assert theirs._work is not None
    theirs._work.pay(2.0)  # as dear packets would
    before = found.counters.dropped_datagrams
    await say(bob, b"x")
    assert not ann.send(pb.Request(heartbeat=pb.Heartbeat())).done()
    await eventually(lambda: found.counters.dropped_datagrams > before)
    # As of what is lost on the way: it comes later.
    await say(ann, b"x", 30.0)


def own_port(client: FrameClient) -> int:
    assert client.quic is not None and client.quic._udp is not None
    return client.quic._udp.port


# ------------------------------------------------------------------------------------- limits


async def test_who_comes_too_many_is_told_when_to_come_again(pki_dir: Path):
    async with made(pki_dir, GatewayConfig(connections_max=1)) as front:
        await front.connect("ann")  # by TLS: they are counted together
        second = await front.dial(quic_port=port(front))
        close = (await second.event("close")).close
        assert close.reason == "overloaded" and close.retry_after_ms > 0
        await second.gone()


async def test_who_asks_too_much_is_slowed_down_by_the_window(pki_dir: Path):
    limits = GatewayConfig(requests_per_s=5.0, requests_burst=5)
    async with made(pki_dir, limits) as front:
        ann, _ = await front.connect("ann", quic_port=port(front))
        content = bytes(20_000)
        answers = [
            ann.send(pb.Request(send=pb.Send(conversation=CHAT, cid=1, content=content)))
            for _ in range(20)
        ]
        [theirs] = set(listener(front.gateways[0])._by_id.values())
        most = 0
        async with asyncio.timeout(60):
            while not all(each.done() for each in answers):
                most = max(most, sum(map(len, theirs._held)))
                await asyncio.sleep(0.005)
        codes = [each.result().error.code for each in answers]
        assert "overloaded" in codes and codes.count("") >= 5
        assert 0 < most <= quic.WINDOW


async def test_a_slow_reader_loses_pushes_and_one_that_is_stuck_the_connection(pki_dir: Path):
    limits = GatewayConfig(push_bytes_max=64 * 1024, stuck_ms=3_000)
    async with made(pki_dir, limits) as front, Line(port(front)) as line:
        ann, _ = await front.connect("ann", quic_port=line.port)
        bob, _ = await front.connect("bob", quic_port=port(front))
        line.blocked = True
        for _ in range(10):
            await say(bob, bytes(20_000))
        gateway = front.gateways[0]
        assert gateway.counters.dropped >= 5
        line.blocked = False
        assert (await ann.event("signal", 10.0)).signal  # of what was dropped
        line.blocked = True
        for _ in range(10):
            await say(bob, bytes(20_000))
        await eventually(lambda: gateway.counters.slow == 1 and len(gateway) == 1, 10.0)
