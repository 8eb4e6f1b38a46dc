"""The link proxy between real sockets, and its fault API over real mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest

from imcore.errors import BadInput, Refused
from imcore.proto import peer_pb2 as pb
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.tls import SERVER_OPTIONS, grpc_channel, grpc_server_credentials
from imctl.target.places import free_port
from services.linkproxy.admin import AdminService
from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.proxy import Fault, LinkProxy, Route, endpoints, link_specs
from services.node.authorize import Authorizer
from services.sdk.testing.app import eventually

DELAY_MS = 20.0
SOON_S = 10.0
REGIONS = Path(__file__).resolve().parents[2] / "regions"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Site:
    """Two IDCs' peer endpoints (echo servers) and the proxy between them."""

    def __init__(self, proxy: LinkProxy, dial: Callable[[str, str], Awaitable[Streams]]) -> None:
        self.proxy = proxy
        self.dial = dial

    def set(self, source: str, target: str, mode: Mode, both: bool = False) -> None:
        self.proxy.apply(Fault(source, target, mode, both))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def running(spec: LinkSpec) -> AsyncIterator[Site]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()[:2]
    specs = {("a", "b"): spec, ("b", "a"): spec}
    proxy = LinkProxy({"a": address, "b": address}, specs, random.Random(1))
    bound = await proxy.listen({})
    writers: list[asyncio.StreamWriter] = []

    async def dial(source: str, target: str) -> Streams:
        reader, writer = await asyncio.open_connection(*bound[source, target])
        writers.append(writer)
        return reader, writer

    try:
        yield Site(proxy, dial)
    finally:
        for writer in writers:
            writer.close()
        await proxy.close()
        server.close()
        for writer in writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running(LinkSpec(delay_ms=DELAY_MS)) as site:
        yield site


async def ask(streams: Streams, text: bytes = b"hi") -> bytes:
    reader, writer = streams
    writer.write(text)
    return await asyncio.wait_for(reader.readexactly(len(text)), SOON_S)


async def silent(streams: Streams, seconds: float = 0.15) -> bool:
    try:
        await asyncio.wait_for(streams[0].read(1), seconds)
    except TimeoutError:
        return True
    return False


async def test_the_added_round_trip_is_twice_the_delay(site: Site) -> None:
    loop = asyncio.get_running_loop()
    streams = await site.dial("a", "b")
    started = loop.time()
    await ask(streams)
    first_ms = (loop.time() - started) * 1000
    times_ms = []
    for _ in range(10):
        started = loop.time()
        await ask(streams)
        times_ms.append((loop.time() - started) * 1000)
    assert 2 * DELAY_MS - 1 <= statistics.median(times_ms) < 3 * DELAY_MS - 5
    # The first exchange pays for the handshake too, which has begun with the dialling.
    assert first_ms > 3 * DELAY_MS


async def test_much_data_arrives_whole_and_in_order(site: Site) -> None:
    reader, writer = await site.dial("a", "b")
    data = random.Random(2).randbytes(9_000_000)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    assert await asyncio.wait_for(reader.read(-1), 30) == data
    await sending


async def test_a_pipe_whose_reader_stops_is_bounded(site: Site) -> None:
    _, writer = await site.dial("a", "b")
    site.set("a", "b", Mode.DROP)
    writer.write(bytes(40_000_000))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.drain(), 0.3)
    assert max(r.near.pipe.pending_bytes for r in site.proxy._relays) <= 5 << 20
    writer.transport.abort()


async def test_a_one_way_drop_is_silent_and_leaves_the_other_way(site: Site) -> None:
    dialled, answered = await site.dial("a", "b"), await site.dial("b", "a")
    await ask(dialled)
    await ask(answered)
    site.set("a", "b", Mode.DROP)
    dialled[1].write(b"lost on the way there")
    answered[1].write(b"its answer is lost")
    assert await silent(dialled)
    assert await silent(answered)
    assert not dialled[0].at_eof()


async def test_new_connections_during_a_drop_hang_and_are_reset_on_heal(site: Site) -> None:
    site.set("a", "b", Mode.DROP, both=True)
    streams = await site.dial("a", "b")
    streams[1].write(b"anybody?")
    assert await silent(streams)
    site.set("a", "b", Mode.PASS, both=True)
    await ask(await site.dial("a", "b"))


async def test_a_short_drop_is_bridged_without_loss(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.linkproxy.model.PATIENCE_S", 30.0)  # it counts as short
    streams = await site.dial("a", "b")
    await ask(streams)
    site.set("a", "b", Mode.DROP, both=True)
    streams[1].write(b"later")
    assert await silent(streams)
    site.set("a", "b", Mode.PASS, both=True)
    assert await asyncio.wait_for(streams[0].readexactly(5), SOON_S) == b"later"


async def test_a_connection_that_waited_through_a_long_drop_is_reset_on_heal(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.linkproxy.model.PATIENCE_S", 0.05)
    waiting, idle = await site.dial("a", "b"), await site.dial("a", "b")
    await ask(waiting)
    await ask(idle)
    site.set("a", "b", Mode.DROP, both=True)
    waiting[1].write(b"stuck")
    assert await silent(waiting)
    site.set("a", "b", Mode.PASS, both=True)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(waiting[0].read(1), SOON_S)
    assert await ask(idle) == b"hi"


async def test_a_close_during_a_drop_is_not_seen_by_the_other_side(site: Site) -> None:
    reader, writer = await site.dial("a", "b")
    await ask((reader, writer))
    (relay,) = site.proxy._relays
    site.set("a", "b", Mode.DROP)
    writer.close()
    await eventually(lambda: relay.near.pipe.holds)
    await asyncio.sleep(0.1)
    assert not relay.far.lost


async def test_reject_resets_connections_old_and_new(site: Site) -> None:
    streams = await site.dial("a", "b")
    await ask(streams)
    site.set("b", "a", Mode.REJECT)
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(streams[0].read(1), SOON_S)
    with pytest.raises(OSError):
        await ask(await site.dial("a", "b"))
    site.set("b", "a", Mode.PASS)
    await ask(await site.dial("a", "b"))


async def test_a_target_that_is_down_resets_after_the_round_trip() -> None:
    spec = LinkSpec(delay_ms=10)
    gone = ("127.0.0.1", free_port())
    proxy = LinkProxy({"a": gone, "b": gone}, {("a", "b"): spec, ("b", "a"): spec}, random.Random())
    bound = await proxy.listen({})
    reader, writer = await asyncio.open_connection(*bound["a", "b"])
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(1), SOON_S)
    writer.close()
    await proxy.close()
    assert not proxy._relays


async def test_relays_are_forgotten_when_they_end(site: Site) -> None:
    reader, writer = await site.dial("a", "b")
    await ask((reader, writer))
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(1), SOON_S) == b""
    writer.close()
    await writer.wait_closed()
    await eventually(lambda: not site.proxy._relays)


async def test_a_slower_link_is_slower_until_it_heals(site: Site) -> None:
    loop = asyncio.get_running_loop()
    streams = await site.dial("a", "b")
    await ask(streams)
    slow = LinkSpec(delay_ms=100)
    sentence = site.proxy.apply(Fault("a", "b", Mode.PASS, False, slow))
    assert sentence.startswith("link a -> b: passes, delay 100 ms")
    started = loop.time()
    await ask(streams)
    assert loop.time() - started > (100 + DELAY_MS - 1) / 1000
    assert [link["as_configured"] for link in site.proxy.links()] == [False, True]
    site.set("a", "b", Mode.PASS)
    assert all(link["as_configured"] for link in site.proxy.links())


async def test_unknown_idcs_are_refused(site: Site) -> None:
    with pytest.raises(Refused, match="expected two different ones of a, b, got a and mars"):
        site.set("a", "mars", Mode.DROP)


def test_the_regions_links_are_taken_both_ways_and_the_witness_is_one_end() -> None:
    region = load_region(REGIONS / "two-idc.yaml")
    specs = link_specs(region)
    assert len(specs) == 6
    assert specs["fra", "dub"] == specs["dub", "fra"] == LinkSpec(12.5, 1, 0.0002, 1e6)
    assert set(endpoints(region)) == {"fra", "dub", "witness"}


@contextlib.asynccontextmanager
async def fault_api(site: Site, pki_dir: Path, faults: bool) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[Authorizer(())], options=SERVER_OPTIONS)
    rpc.add_AdminServicer_to_server(AdminService(site.proxy, faults, lambda: None), server)
    port = server.add_secure_port("127.0.0.1:0", grpc_server_credentials(pki_dir, "linkproxy"))
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def call(pki_dir: Path, address: str, link: pb.LinkFault, caller: str = "admin") -> str:
    async with grpc_channel(pki_dir, caller, "linkproxy", address) as channel:
        reply = await rpc.AdminStub(channel).Fault(pb.FaultRequest(link=link), timeout=SOON_S)
        return reply.sentence


async def test_the_fault_api_cuts_a_link_for_admin_only(site: Site, pki_dir: Path) -> None:
    cut = pb.LinkFault(from_idc="a", to_idc="b", mode="drop", both_ways=True)
    async with fault_api(site, pki_dir, faults=True) as address:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(pki_dir, address, cut, caller="fra")
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.aio.AioRpcError, match=r"needs the role admin; .* role operator"):
            await call(pki_dir, address, cut, caller="operator")
        assert [link["mode"] for link in site.proxy.links()] == ["pass", "pass"]
        async with grpc_channel(pki_dir, "viewer", "linkproxy", address) as channel:
            seen = await rpc.AdminStub(channel).Status(pb.StatusRequest(), timeout=SOON_S)
        assert len(json.loads(seen.json)["links"]) == 2
        assert await call(pki_dir, address, cut) == "link a <-> b: drops everything"
        assert [link["mode"] for link in site.proxy.links()] == ["drop", "drop"]
        bad = pb.LinkFault(from_idc="a", to_idc="b", mode="explode")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(pki_dir, address, bad)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_fault_api_is_off_by_default(site: Site, pki_dir: Path) -> None:
    async with fault_api(site, pki_dir, faults=False) as address:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(pki_dir, address, pb.LinkFault(from_idc="a", to_idc="b", mode="drop"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def idcs(pki_dir: Path) -> AsyncIterator[tuple[LinkProxy, str]]:
    """iad's gRPC server, fra's way to it, and the proxy between them."""

    class Iad(rpc.PeerServicer):
        async def Probe(self, request, context):
            return pb.ProbeReply(idc="iad")

        async def Facts(self, request, context):
            raise NotImplementedError

        async def Signals(self, request_iterator, context):
            raise NotImplementedError

    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_PeerServicer_to_server(Iad(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc_server_credentials(pki_dir, "iad"))
    await server.start()
    address = ("127.0.0.1", port)
    spec = LinkSpec(delay_ms=5)
    specs = {("fra", "iad"): spec, ("iad", "fra"): spec}
    proxy = LinkProxy({"fra": address, "iad": address}, specs, random.Random(1))
    host, number = (await proxy.listen({}))["fra", "iad"]
    yield proxy, f"{host}:{number}"
    await proxy.close()
    await server.stop(None)


async def test_grpc_dials_again_at_once_when_a_cut_link_heals(
    idcs: tuple[LinkProxy, str], pki_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.linkproxy.model.PATIENCE_S", 0.1)
    proxy, target = idcs
    async with grpc_channel(pki_dir, "fra", "iad", target) as channel:
        stub = rpc.PeerStub(channel)
        loop, took_s = asyncio.get_running_loop(), 9.0
        for _ in range(4):  # the machine may stand still
            await stub.Probe(pb.ProbeRequest(), timeout=SOON_S)
            proxy.apply(Fault("fra", "iad", Mode.DROP, True))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Probe(pb.ProbeRequest(), timeout=0.3)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            proxy.apply(Fault("fra", "iad", Mode.PASS, True))
            healed = loop.time()
            # On the old connection, if it is not gone.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await stub.Probe(pb.ProbeRequest(), timeout=1, wait_for_ready=True)
            reply = await stub.Probe(pb.ProbeRequest(), timeout=SOON_S, wait_for_ready=True)
            assert reply.idc == "iad"
            took_s = min(took_s, loop.time() - healed)
            if took_s < 0.8:
                break
        assert took_s < 0.8


async def test_grpc_takes_the_wrong_peer_for_nobody(
    idcs: tuple[LinkProxy, str], pki_dir: Path
) -> None:
    _, target = idcs
    async with grpc_channel(pki_dir, "fra", "sin", target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.PeerStub(channel).Probe(pb.ProbeRequest(), timeout=SOON_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_route_obeys_the_faults_of_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MirrorMaker 2 and the peers say to each other share the link."""
    monkeypatch.setattr("services.linkproxy.model.PATIENCE_S", 30.0)
    broker = await asyncio.start_server(echo, "127.0.0.1", 0)
    address = broker.sockets[0].getsockname()[:2]
    listen = ("127.0.0.1", free_port())
    spec = LinkSpec(delay_ms=DELAY_MS)
    gone = ("127.0.0.1", 1)  # nothing listens at the peers' endpoints
    routes = [Route("a", "b", listen, address)]
    specs = {("a", "b"): spec, ("b", "a"): spec}
    proxy = LinkProxy({"a": gone, "b": gone}, specs, random.Random(1), routes)
    bound = await proxy.listen({})
    assert set(bound) == {("a", "b"), ("b", "a")}
    reader, writer = await asyncio.open_connection(*listen)
    try:
        started = asyncio.get_running_loop().time()
        assert await ask((reader, writer)) == b"hi"
        assert asyncio.get_running_loop().time() - started >= 2 * DELAY_MS / 1_000
        proxy.apply(Fault("a", "b", Mode.DROP, both_ways=False))
        writer.write(b"lost?")
        assert await silent((reader, writer))
        proxy.apply(Fault("a", "b", Mode.PASS, both_ways=False))
        assert await asyncio.wait_for(reader.readexactly(5), SOON_S) == b"lost?"
        proxy.apply(Fault("b", "a", Mode.REJECT, both_ways=False))
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), SOON_S)
    finally:
        writer.close()
        await proxy.close()
        broker.close()
    with pytest.raises(BadInput, match="from a to c: no link"):
        LinkProxy({}, specs, random.Random(1), [Route("a", "c", listen, address)])


async def test_a_connection_is_reset_when_its_time_is_over():
    async with running(LinkSpec(life_ms=300)) as site:
        reader, _ = streams = await site.dial("a", "b")
        await ask(streams)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(1), SOON_S)


async def test_a_nat_forgets_a_connection_without_traffic_and_says_nothing():
    async with running(LinkSpec(idle_ms=500)) as site:
        used, idle = await site.dial("a", "b"), await site.dial("a", "b")
        await ask(idle)
        for _ in range(8):
            await ask(used)
            await asyncio.sleep(0.08)
        idle[1].write(b"hi")
        assert await silent(idle)
        await ask(await site.dial("a", "b"))
