"""The client protocol inside HTTP requests: the gateway's end, and the SDK's, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from imcore import frame
from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.runtime import ManualClock
from services.gateway.config import GatewayConfig
from services.gateway.polling import UP_BYTES_MAX, _Refused
from services.linkproxy.model import LinkSpec
from services.linkproxy.proxy import LinkProxy
from services.sdk import polling
from services.sdk.polling import PollingDialer
from services.sdk.testing.app import eventually
from services.sdk.transport import DialFailed, Wire
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)
CHAT = "d:ann:bob"


@asynccontextmanager
async def way(port: int, spec: LinkSpec) -> AsyncIterator[tuple[LinkProxy, int]]:
    """A proxy in front of the gateway, and where to dial it."""
    address = ("127.0.0.1", port)
    specs = {("ann", "gw"): spec, ("gw", "ann"): spec}
    proxy = LinkProxy({"ann": address, "gw": address}, specs, random.Random(1))
    try:
        yield proxy, (await proxy.listen({}))["ann", "gw"][1]
    finally:
        await proxy.close()


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    async with Front(KEYS, limits=GatewayConfig(first_frame_ms=20_000, polled_max=2)) as made:
        yield made


class Poller:
    """What comes over a polled wire, and how it ended."""

    def __init__(self) -> None:
        self.answers: dict[int, pb.Response] = {}
        self.pushed: list[bytes] = []
        self.closed: list[str] = []
        self.told: list[str] = []
        self.wire: Wire

    async def dial(self, port: int) -> None:
        dialer = PollingDialer(None)
        self.wire = await dialer.dial("127.0.0.1", port, 5.0, self._frame, self.closed.append)

    def _frame(self, received: frame.Frame) -> None:
        if received.type == frame.RESPONSE:
            assert received.id not in self.answers
            self.answers[received.id] = pb.Response.FromString(received.body)
            return
        event = pb.Event.FromString(received.body)
        if event.HasField("close"):
            self.told.append(event.close.reason)
        self.pushed += [entry.message.content for entry in event.push.entries]

    def ask(self, number: int, request: pb.Request) -> None:
        self.wire.send(frame.REQUEST, number, request.SerializeToString())


@pytest.fixture
async def ann(front: Front) -> AsyncIterator[Poller]:
    poller = Poller()
    await poller.dial(front.gateways[0].port)
    poller.ask(1, front.hello("ann"))
    await eventually(lambda: 1 in poller.answers)
    yield poller
    poller.wire.close()
    await eventually(lambda: not len(front.gateways[0].polling))


def send(number: int, content: bytes = b"") -> pb.Request:
    return pb.Request(
        send=pb.Send(conversation=CHAT, cid=number, content=content or b"%d" % number)
    )


async def test_a_polled_connection_sends_and_is_pushed_to_at_once(front: Front, ann: Poller):
    bob, _ = await front.connect("bob")
    content = b"x" * 90_000  # more than one request carries
    ann.ask(2, send(1, content))
    await eventually(lambda: 2 in ann.answers)
    assert (await bob.event("push")).push.entries[0].message.content == content
    began = asyncio.get_running_loop().time()
    await bob.ask(send(1, b"hello"))
    await eventually(lambda: ann.pushed[-1:] == [b"hello"])
    took_s = asyncio.get_running_loop().time() - began
    assert took_s < 5.0  # it does not wait for a request's end


async def test_nothing_is_lost_or_comes_twice_however_often_requests_are_cut(front: Front):
    spec = LinkSpec(delay_ms=1, life_ms=60)
    async with way(front.gateways[0].port, spec) as (_, port):
        ann = Poller()
        await ann.dial(port)
        ann.ask(1, front.hello("ann"))
        bob, _ = await front.connect("bob")
        await eventually(lambda: 1 in ann.answers)
        for n in range(1, 151):
            ann.ask(n + 1, send(n))
            await bob.ask(send(n, b"bob %d" % n))
            await asyncio.sleep(0.005)
        await eventually(lambda: len(ann.answers) == 151 and len(ann.pushed) == 300, 30.0)
        stored = [entry.message.content for entry in front.im.entries[CHAT]]
        assert ann.pushed == stored  # all, once, in order
        assert [c for c in stored if not c.startswith(b"bob")] == [b"%d" % n for n in range(1, 151)]
        assert not ann.closed and front.gateways[0].counters.accepted > 10  # HTTP connections
        ann.wire.close()


async def test_what_was_sent_before_it_was_closed_still_comes(front: Front, ann: Poller):
    ann.ask(2, send(1))
    ann.ask(3, pb.Request(bye=pb.Bye()))
    ann.wire.close()
    await eventually(lambda: len(front.im.over) == 1)
    assert len(front.im.entries[CHAT]) == 1


async def test_a_poller_is_told_why_it_must_go(front: Front, ann: Poller):
    await front.connect("ann", 2)
    await eventually(lambda: ann.told == ["replaced"] and ann.closed == ["lost"])


async def test_what_it_brings_too_late_does_not_keep_it_from_hearing_why(front: Front, ann: Poller):
    [gateway] = front.gateways
    down = gateway.polling._paths["/poll/down"]

    async def slowly(carrier: Any, body: bytes) -> bytes:
        answer = await down(carrier, body)
        await asyncio.sleep(0.3)
        return answer

    gateway.polling._paths["/poll/down"] = slowly
    ann.ask(2, pb.Request(heartbeat=pb.Heartbeat()))
    await eventually(lambda: 2 in ann.answers)
    await front.connect("ann", 2)
    ann.ask(3, pb.Request(heartbeat=pb.Heartbeat()))  # there is nobody for it any more
    await eventually(lambda: ann.closed == ["lost"])
    assert ann.told == ["replaced"]  # or it would come back, and the two would fight


async def test_one_that_does_not_sign_in_is_closed():
    async with Front(KEYS, limits=GatewayConfig(first_frame_ms=400)) as front:
        stranger = Poller()
        await stranger.dial(front.gateways[0].port)
        await eventually(lambda: stranger.told == ["idle"] and stranger.closed == ["lost"])
        assert not len(front.gateways[0]) and not len(front.gateways[0].polling)


async def test_so_many_are_polled_and_no_more(front: Front, ann: Poller):
    other = Poller()
    await other.dial(front.gateways[0].port)
    with pytest.raises(DialFailed, match="no room") as failed:
        await Poller().dial(front.gateways[0].port)
    # It has answered, and has said when to come again.
    assert failed.value.reason == "overloaded" and failed.value.retry_after_ms == 1_000
    await front.connect("bob")  # the others have their own limit
    other.wire.close()
    await eventually(lambda: len(front.gateways[0].polling) == 1)


async def test_a_gateway_that_stops_says_so(front: Front, ann: Poller):
    await front.gateways[0].stop()
    await eventually(lambda: ann.told == ["shutdown"] and bool(ann.closed))


@pytest.mark.parametrize(
    ("said", "wait_ms"),
    [
        ("7", 7_000),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 1_000),  # as a proxy on the way may say it
        ("inf", 1_000),
        ("-5", 1_000),
        ("999999999", 600_000),
        (None, 1_000),
    ],
)
async def test_whatever_a_proxy_says_of_when_to_come_again_is_a_time(said, wait_ms):
    async def busy(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": said} if said else {})

    async with RawTestServer(busy) as server:
        with pytest.raises(DialFailed) as failed:
            await Poller().dial(int(server.port or 0))
    assert (failed.value.reason, failed.value.retry_after_ms) == ("overloaded", wait_ms)


async def test_one_that_is_put_off_for_long_is_given_up(front: Front, ann: Poller, monkeypatch):
    monkeypatch.setattr(polling, "GIVE_UP_S", 1.0)

    async def busy(carrier: Any, body: bytes) -> bytes:
        raise _Refused(503, 3_600_000)

    front.gateways[0].polling._paths["/poll/up"] = busy
    ann.ask(2, pb.Request(heartbeat=pb.Heartbeat()))
    await eventually(lambda: ann.closed == ["lost"])
    front.gateways[0].polling._open.clear()


# ------------------------------------------------------------------------------ bare requests


class Bare:
    def __init__(self, http: aiohttp.ClientSession, port: int) -> None:
        self._http = http
        self._url = f"http://127.0.0.1:{port}"
        self.ident = b""

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        async with self._http.post(f"{self._url}{path}", data=body) as answer:
            return answer.status, await answer.read()

    async def open(self, first: bytes) -> None:
        status, self.ident = await self.post("/poll/open", first)
        assert status == 200 and len(self.ident) == 16

    async def up(self, offset: int, data: bytes) -> tuple[int, int]:
        status, body = await self.post("/poll/up", struct.pack(">16sQ", self.ident, offset) + data)
        return status, int.from_bytes(body)

    async def down(self, confirmed: int, wait_ms: int = 0) -> tuple[int, bytes]:
        request = struct.pack(">16sQI", self.ident, confirmed, wait_ms)
        status, body = await self.post("/poll/down", request)
        return status, body[8:]


@pytest.fixture
async def bare(front: Front) -> AsyncIterator[Bare]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        made = Bare(http, front.gateways[0].port)
        yield made
        await made.post("/poll/close", made.ident)  # or the gateway would wait for it


def hello(front: Front) -> bytes:
    request = front.hello("ann").SerializeToString()
    return frame.client_preface() + frame.encode(frame.REQUEST, 1, request)


async def test_a_request_that_is_made_again_is_taken_once(front: Front, bare: Bare):
    first = hello(front)
    await bare.open(first)
    body = frame.encode(frame.REQUEST, 2, send(1).SerializeToString())
    at = len(first)
    assert await bare.up(at, body) == await bare.up(at, body) == (200, at + len(body))
    assert await bare.up(at + 5, body[5:]) == (200, at + len(body))
    assert len(front.im.entries[CHAT]) == 1
    assert (await bare.down(0))[1] == (await bare.down(0))[1] != b""


async def test_what_was_not_confirmed_comes_again_and_then_no_more(front: Front, bare: Bare):
    await bare.open(hello(front))
    _, all_of_it = await bare.down(0, 500)
    assert all_of_it.startswith(frame.server_preface(1))
    _, rest = await bare.down(3)
    assert rest == all_of_it[3:]
    assert await bare.down(len(all_of_it)) == (200, b"")
    assert (await bare.down(0))[0] == 400  # it said that it has that
    assert (await bare.down(1 << 40))[0] == 400


async def test_a_hole_is_refused(front: Front, bare: Bare):
    first = hello(front)
    await bare.open(first)
    assert (await bare.up(len(first) + 1, b"x"))[0] == 400


BAD = {
    "unknown": ("/poll/up", bytes(40), 410),
    "short": ("/poll/up", b"x", 400),
    "long": ("/poll/down", bytes(80), 400),
    "too_large": ("/poll/open", bytes(UP_BYTES_MAX + 1), 413),
    "other_path": ("/", b"", 404),
    "closed_before": ("/poll/close", bytes(16), 410),
}


@pytest.mark.parametrize("name", BAD)
async def test_rubbish_costs_only_its_own_connection(front: Front, bare: Bare, name: str):
    bob, _ = await front.connect("bob")
    path, body, status = BAD[name]
    assert (await bare.post(path, body))[0] == status
    await eventually(lambda: front.gateways[0].polling.carriers() == 0)
    assert len(front.gateways[0]) == 1 and not bob.closed.done()


async def test_http_inside_of_it_is_no_client(front: Front, bare: Bare):
    await bare.open(b"POST /poll/open HTTP/1.1\r\n\r\n")
    await eventually(lambda: not len(front.gateways[0].polling))


@pytest.mark.parametrize("head", [b"", b"Content-Length: 10\r\n"])
async def test_a_body_without_length_or_end_is_given_up(head: bytes):
    async with Front(KEYS, limits=GatewayConfig(first_frame_ms=400)) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.gateways[0].port)
        writer.write(b"POST /poll/up HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 4")
        writer.close()


async def test_whoever_does_not_fetch_is_closed_and_holds_little():
    limits = GatewayConfig(push_bytes_max=40_000, stuck_ms=300)
    async with Front(KEYS, limits=limits) as front, aiohttp.ClientSession() as http:
        bare = Bare(http, front.gateways[0].port)
        await bare.open(hello(front))
        bob, _ = await front.connect("bob")
        for n in range(20):
            await bob.ask(send(n + 1, b"x" * 10_000))
        counters = front.gateways[0].counters
        assert counters.dropped > 0
        await eventually(lambda: counters.slow == 1 and not len(front.gateways[0].polling))
        assert (await bare.down(0))[0] == 410


# ----------------------------------------------------------------------------------- hostile


async def opened_and_closed(bare: Bare, times: int) -> list[int]:
    """The statuses of so many /poll/open, each with a /poll/close, on one connection."""
    statuses = []
    for _ in range(times):
        status, body = await bare.post("/poll/open", frame.client_preface())
        statuses.append(status)
        if status == 200:
            await bare.post("/poll/close", body)
    return statuses


async def test_who_opens_and_closes_all_the_time_takes_nobodys_place():
    limits, clock = GatewayConfig(connects_per_s=20.0), ManualClock()
    async with Front(KEYS, limits=limits, clock=clock) as front, aiohttp.ClientSession() as http:
        [gateway] = front.gateways
        bare = Bare(http, gateway.port)
        # Refused ones cost the carrier, which comes through a door like anybody.
        assert await opened_and_closed(bare, 4) == [200, 200, 200, 429]
        assert gateway.counters.accepted == 4  # the carrier, and three by its place
        assert gateway._doors._bucket._tokens >= 19.0
        await front.connect("bob")


async def test_one_address_begins_to_poll_at_a_rate():
    limits = GatewayConfig(connects_per_s=20.0, polls_of_address=0.2)  # 4 at once
    async with Front(KEYS, limits=limits) as front:
        statuses = []
        for _ in range(8):
            async with aiohttp.ClientSession() as http:
                statuses += await opened_and_closed(Bare(http, front.gateways[0].port), 1)
        assert statuses.count(200) in (4, 5, 6) and statuses.count(429) in (4, 3, 2)
        await front.connect("bob")


async def test_through_a_proxy_each_that_is_polled_comes_by_a_door_of_its_own():
    proxies = (ip_network("127.0.0.1/32"),)
    limits, clock = GatewayConfig(shared=proxies, connects_per_s=4.0), ManualClock()
    async with Front(KEYS, limits=limits, clock=clock) as front, aiohttp.ClientSession() as http:
        bare = Bare(http, front.gateways[0].port)
        assert await opened_and_closed(bare, 3) == [200, 200, 200]
        assert front.gateways[0]._doors._bucket._tokens < 2.0


async def test_one_address_has_so_many_http_connections():
    limits = GatewayConfig(connections_of_address=2, first_frame_ms=60_000)
    async with Front(KEYS, limits=limits) as front:
        port = front.gateways[0].port
        head = b"POST /poll/up HTTP/1.1\r\nHost: a\r\n"  # and never the rest
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in silent:
            writer.write(head)
            await asyncio.sleep(0.05)
        # Who asks for nothing gives way, the one silent for longest first.
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(silent[0][0].read(), 5) == b""
        assert front.gateways[0].polling.carriers() == 2
        for _, writer in silent:
            writer.close()


async def test_requests_behind_each_other_are_held_back():
    async with Front(KEYS) as front:
        [gateway] = front.gateways
        bob, _ = await front.connect("bob")
        async with aiohttp.ClientSession() as http:
            bare = Bare(http, gateway.port)
            await bare.open(hello(front))
            confirmed = len((await bare.down(0, 500))[1])
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = struct.pack(">16sQI", bare.ident, confirmed, 20_000)
        one = b"POST /poll/down HTTP/1.1\r\nHost: a\r\nContent-Length: 28\r\n\r\n" + body
        writer.write(one * (256 * 1024 // len(one)))
        for _ in range(20):
            assert not (await bob.ask(pb.Request(heartbeat=pb.Heartbeat()))).HasField("error")
        [carrier] = gateway.polling._carriers.values()
        http_protocol: Any = carrier.http
        assert len(http_protocol._messages) < 100
        writer.close()
