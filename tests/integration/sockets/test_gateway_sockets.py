"""The gateway on real TLS sockets: what one client does costs only that client."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest

from imcore import frame
from imcore.attest import RegionKeys
from imcore.convert import stamp_of
from imcore.pki import load_region_keys
from imcore.proto import client_pb2 as pb
from imcore.region.model import ClientParameters
from imcore.runtime import ManualClock
from imcore.tls import client_ssl_context, gateway_ssl_context
from services.gateway.config import GatewayConfig
from services.state.testing import Front

CONVERSATION = "d:ann:bob"


@pytest.fixture
def keys(pki_dir) -> RegionKeys:
    return load_region_keys(pki_dir)


@pytest.fixture
def tls(pki_dir) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return gateway_ssl_context(pki_dir, "fra"), client_ssl_context(pki_dir / "ca.pem")


def send(content: bytes = b"hi", cid: int = 1) -> pb.Request:
    return pb.Request(send=pb.Send(conversation=CONVERSATION, cid=cid, content=content))


async def until(condition, timeout_s: float = 5.0) -> None:
    """For what another task brings about without an event of its own."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.005)


async def test_two_clients_chat_over_tls(keys, tls):
    async with Front(keys, tls) as front:
        ann, ok = await front.connect("ann", outbox=[pb.OutboxHead(conversation=CONVERSATION)])
        bob, _ = await front.connect("bob")
        assert (ok.gateway, ok.policy_epoch, ok.resumed) == ("fra-gw-1", 12, False)
        assert ok.origin == pb.Origin(idc="fra", incarnation=1)
        assert [known.conversation for known in ok.known] == [CONVERSATION]
        ack = await ann.ask(send())
        assert ack.send_ack.placed.seq == 1 and keys.seen(stamp_of(ack.stamp)) > 0
        push = await bob.event("push")
        assert push.push.entries[0].message.content == b"hi" and keys.seen(stamp_of(push.stamp)) > 0
        await ann.event("push")  # its sender's own devices too


async def test_a_connection_waits_for_nothing_and_not_for_ever_for_a_peer_that_is_gone(keys, tls):
    async with Front(keys, tls) as front:
        await front.connect("ann")
        [connection] = front.gateways[0]._connections.values()
        assert connection._transport is not None
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


async def test_large_bodies_go_in_chunks_both_ways(keys, tls):
    content = bytes(range(256)) * 64  # 16 KiB
    async with Front(keys, tls) as front:
        ann, _ = await front.connect("ann")
        bob, _ = await front.connect("bob")
        await ann.ask(send(content))
        assert (await bob.event("push")).push.entries[0].message.content == content


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frame.MAGIC + b"\x02\x01",
        frame.client_preface() + b"\xff" * 100,
        frame.client_preface() + frame.encode(frame.EVENT, 0, b""),
        frame.client_preface() + frame.encode(frame.REQUEST, 1, b"\xff\xff\xff"),
        frame.client_preface() + frame.HEADER.pack(frame.REQUEST, 1, 0, 1) * 3,
    ],
    ids=["http", "versions", "header", "event", "body", "empty chunks"],
)
async def test_rubbish_costs_only_its_own_connection(keys, tls, rubbish):
    async with Front(keys, tls) as front:
        ann, _ = await front.connect("ann")
        bad = await front.dial(speak=False)
        bad.transport.write(rubbish)
        await bad.gone()
        assert not (await ann.ask(send())).HasField("error")


async def test_rubbish_instead_of_tls_costs_only_its_own_connection(keys, tls):
    async with Front(keys, tls) as front:
        ann, _ = await front.connect("ann")
        reader, writer = await asyncio.open_connection("127.0.0.1", front.gateways[0].port)
        writer.write(b"\x00" * 500)
        await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert not (await ann.ask(send())).HasField("error")


async def test_a_client_of_a_later_version_is_told_and_closed(keys, tls):
    async with Front(keys, tls) as front:
        client = await front.dial(speak=False)
        client.transport.write(frame.MAGIC + bytes((7, 9)))
        assert await client.spoken == 0
        await client.gone()


async def test_a_client_that_never_reads_loses_its_connection_and_others_are_served(keys, tls):
    limits = GatewayConfig(push_bytes_max=32 * 1024, stuck_ms=300, tick_ms=20)
    async with Front(keys, tls, limits=limits) as front:
        deaf, _ = await front.connect("ann", device="deaf")
        deaf.transport.pause_reading()
        bob, _ = await front.connect("bob")
        ann, _ = await front.connect("ann", device="desk")
        [gateway] = front.gateways
        while not gateway.counters.dropped:
            await bob.ask(send(bytes(60_000)))
            assert len((await ann.event("push")).push.entries[0].message.content) == 60_000
        assert front.state.counters.overflowed == 0  # it can be told nothing yet
        await until(lambda: gateway.counters.slow == 1)
        await until(lambda: front.state.connected_count() == 2)
        deaf.abort()
        assert not (await bob.ask(send())).HasField("error")


async def test_a_slow_reader_that_catches_up_is_told_once_what_it_missed(keys, tls):
    limits = GatewayConfig(push_bytes_max=32 * 1024, stuck_ms=60_000)
    # While the clock stands no other signal comes, of those that are due after a time.
    async with Front(keys, tls, limits=limits, clock=ManualClock()) as front:
        slow, _ = await front.connect("ann", device="slow")
        ack = (await slow.ask(send())).send_ack
        await slow.event("push")
        slow.transport.pause_reading()
        bob, _ = await front.connect("bob")
        [gateway] = front.gateways
        while not gateway.counters.dropped:
            await bob.ask(send(bytes(60_000)))
        front.state.replicated(front.im.origin, 0, ack.lsn)
        last = (await bob.ask(send(b"last"))).send_ack.placed.seq
        await until(lambda: gateway.counters.dropped > 2)
        slow.transport.resume_reading()
        signal = (await slow.event("signal")).signal
        assert (signal.conversation, signal.heads[0].seq) == (CONVERSATION, last)
        assert (await slow.event("replicated")).replicated.lsn == ack.lsn
        assert (await slow.event("missed")).stamp.mac
        assert front.state.counters.overflowed == 1


async def test_answers_to_a_client_that_never_reads_are_bounded(keys, tls):
    limits = GatewayConfig(
        push_bytes_max=16 * 1024, response_bytes_max=64 * 1024, requests_burst=10_000
    )
    async with Front(keys, tls, limits=limits) as front:
        client, _ = await front.connect("ann")
        front.im.store(CONVERSATION, bytes(200_000))
        client.transport.pause_reading()
        pull = pb.Request(pull=pb.Pull(conversation=CONVERSATION))
        while not front.gateways[0].counters.slow:
            client.send(pull)
            await asyncio.sleep(0)
        await until(lambda: front.state.connected_count() == 0)
        client.abort()


@pytest.mark.parametrize(
    "opening",
    [b"", frame.MAGIC, frame.client_preface(), frame.client_preface() + b"\x01\x00\x00\x05"],
    ids=["nothing", "half a preface", "no Connect", "half a Connect"],
)
async def test_a_connection_that_does_not_connect_in_time_is_closed(keys, tls, opening):
    limits = GatewayConfig(first_frame_ms=200, tick_ms=20)
    async with Front(keys, tls, limits=limits) as front:
        client = await front.dial(speak=False)
        client.transport.write(opening)
        await client.gone()
        assert front.gateways[0].counters.idle == 1


async def test_bytes_that_make_no_frame_do_not_keep_a_connection(keys, tls):
    limits = GatewayConfig(first_frame_ms=200, tick_ms=20)
    async with Front(keys, tls, limits=limits) as front:
        client = await front.dial()
        for byte in frame.encode(frame.REQUEST, 1, bytes(1_000))[:100]:  # never a whole frame
            if client.closed.done():
                break
            client.transport.write(bytes((byte,)))
            await asyncio.sleep(0.02)
        assert client.closed.done() and front.gateways[0].counters.idle == 1


async def test_heartbeats_keep_a_connection_and_silence_ends_it(keys, tls):
    limits, clock = GatewayConfig(idle_ms=200, tick_ms=20), ManualClock()
    async with Front(keys, tls, limits=limits, clock=clock) as front:
        client, _ = await front.connect("ann")

        async def elapse(seconds: float) -> None:
            """Before it asks next, a tick has seen it."""
            clock.advance(seconds)
            await asyncio.sleep(0.05)

        for _ in range(6):
            await elapse(0.06)
            await client.ask(pb.Request(heartbeat=pb.Heartbeat()))
        while not client.closed.done() and clock.now() < 2.0:
            await elapse(0.06)
        assert (await client.event("close")).close.reason == "idle"
        await client.gone()


async def test_one_client_too_many_is_told_when_to_come_back(keys, tls):
    limits = GatewayConfig(connections_max=1, retry_after_ms=700)
    async with Front(keys, tls, limits=limits) as front:
        await front.connect("ann")
        late = await front.dial()
        close = (await late.event("close")).close
        assert (close.reason, close.retry_after_ms) == ("overloaded", 700)
        await late.gone()
        assert front.gateways[0].counters.refused == 1 and len(front.gateways[0]) == 1


async def test_too_many_requests_are_answered_overloaded_and_slowed_down(keys, tls):
    limits = GatewayConfig(requests_per_s=50, requests_burst=10, tick_ms=20)
    clock = ManualClock()
    async with Front(keys, tls, limits=limits, clock=clock) as front:
        bob, _ = await front.connect("bob")
        greedy, _ = await front.connect("ann")
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(greedy.send(send(cid=n)) for n in range(60)))
        overloaded = [a.error for a in answers if a.error.code == "overloaded"]
        assert len(overloaded) > 30 and all(error.retry_after_ms for error in overloaded)
        assert not (await bob.ask(send())).HasField("error")
        clock.advance(0.1)
        assert not (await greedy.ask(send())).HasField("error")  # served again


async def test_a_thousand_pushes_of_one_turn_cost_few_writes(keys, tls):
    async with Front(keys, tls) as front:
        ann, _ = await front.connect("ann")
        [gateway] = front.gateways
        before = gateway.counters.writes
        for number in range(1_000):
            front.im.push(CONVERSATION, [front.im.store(CONVERSATION, b"%d" % number)])
        seqs = [(await ann.event("push")).push.entries[0].seq for _ in range(1_000)]
        assert seqs == list(range(1, 1_001))
        assert gateway.counters.writes - before <= 5


async def test_a_stopped_gateway_says_goodbye_and_leaves_nothing_open(keys, tls):
    async with Front(keys, tls) as front:
        client, _ = await front.connect("ann")
        await front.gateways[0].stop("drained")
        close = (await client.event("close")).close
        assert close.reason == "drained" and close.retry_after_ms
        await client.gone()
        assert len(front.gateways[0]) == 0


async def test_a_port_in_use_is_an_os_error(keys, tls):
    async with Front(keys, tls) as front:
        with pytest.raises(OSError, match="in use"):
            await front.gateways[0].start("127.0.0.1", front.gateways[0].port, tls[0])


async def test_a_client_with_nothing_but_heartbeats_of_the_region_file_is_not_idle():
    """The limits that the composition root derives leave two heartbeats and a time-out."""
    parameters = ClientParameters()
    idle_ms = 2 * parameters.heartbeat_ms + parameters.heartbeat_timeout_ms
    assert GatewayConfig().idle_ms == idle_ms
