"""A cut link at the edge of an IDC's process, over real gRPC and mutual TLS."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from imcore import pki
from imcore.proto import peer_pb2 as pb
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import SystemClock
from imcore.tls import grpc_channel, grpc_server_credentials
from services.node import cuts as under_test
from services.node.cuts import CutChannel, Cuts, HeldCalls

Calling = Callable[[grpc.aio.Channel, float], Awaitable[Any]]
SOON_S = 10.0  # for what passes, TLS included
NEVER_S = 0.2  # for what does not


class Peer(rpc.PeerServicer, rpc.LogsServicer):
    """Answers one call of each kind, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeReply:
        self.asked += 1
        return pb.ProbeReply(idc="fra")

    async def Facts(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        raise NotImplementedError

    async def Ends(self, request: pb.EndsRequest, context: Any) -> pb.EndsReply:
        raise NotImplementedError

    async def Signals(self, requests: AsyncIterator[pb.SignalBatch], context: Any) -> Any:
        got = 0
        async for _ in requests:
            got += 1
            self.asked += 1
        return pb.SignalsDone(signals=got)

    async def Snapshot(self, request: pb.SnapshotRequest, context: Any) -> Any:
        self.asked += 1
        for offset in range(100):
            yield pb.SnapshotChunk(offset=offset)
            await asyncio.sleep(0.005)

    async def Tail(self, requests: AsyncIterator[pb.TailRequest], context: Any) -> Any:
        async for _ in requests:
            self.asked += 1
            yield pb.TailBatch()


class Two:
    """fra serves and takes faults; ``iad`` and ``admin`` are channels to it, ``out`` is fra's own
    to iad, which is the same server under another name."""

    def __init__(self, cuts: Cuts, peer: Peer, channels: dict[str, grpc.aio.Channel]) -> None:
        self.cuts, self.peer, self.channels = cuts, peer, channels

    def slow(self, **figures: Any) -> str:
        fault = pb.LinkFault(from_idc="fra", to_idc="iad", mode="pass", both_ways=True, **figures)
        return self.cuts.apply(fault)

    def cut(self, mode: str = "drop", a: str = "fra", b: str = "iad", both: bool = True) -> str:
        return self.cuts.apply(pb.LinkFault(from_idc=a, to_idc=b, mode=mode, both_ways=both))


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[Two]:
    names = {"fra": pki.LOCAL_HOSTS, "iad": pki.LOCAL_HOSTS, "admin": ()}
    pki.init(folder, names, datetime.now(UTC))
    cuts, peer = Cuts("fra", ["iad"], SystemClock(), random.Random(1)), Peer()
    held = grpc.aio.server(interceptors=[HeldCalls(cuts)])
    plain = grpc.aio.server()
    ports = {}
    for name, server in (("fra", held), ("iad", plain)):
        rpc.add_PeerServicer_to_server(peer, server)
        rpc.add_LogsServicer_to_server(peer, server)
        ports[name] = server.add_secure_port("127.0.0.1:0", grpc_server_credentials(folder, name))
        await server.start()
    channels: dict[str, grpc.aio.Channel] = {
        caller: grpc_channel(folder, caller, "fra", f"127.0.0.1:{ports['fra']}")
        for caller in ("iad", "admin")
    }
    own = grpc_channel(folder, "fra", "iad", f"127.0.0.1:{ports['iad']}")
    channels["out"] = CutChannel(own, "iad", cuts)
    try:
        yield Two(cuts, peer, channels)
    finally:
        for channel in channels.values():
            await channel.close(None)
        for server in (held, plain):
            await server.stop(0)


async def probe(channel: grpc.aio.Channel, within_s: float = SOON_S) -> None:
    await rpc.PeerStub(channel).Probe(pb.ProbeRequest(), timeout=within_s)


async def signals(channel: grpc.aio.Channel, within_s: float) -> None:
    async def batches() -> AsyncIterator[pb.SignalBatch]:
        yield pb.SignalBatch()

    async with asyncio.timeout(within_s):
        assert (await rpc.PeerStub(channel).Signals(batches())).signals == 1


async def snapshot(channel: grpc.aio.Channel, within_s: float) -> None:
    call = rpc.LogsStub(channel).Snapshot(pb.SnapshotRequest())
    try:
        async with asyncio.timeout(within_s):
            assert isinstance(await call.read(), pb.SnapshotChunk)
    finally:
        call.cancel()


async def tail(channel: grpc.aio.Channel, within_s: float) -> None:
    async def requests() -> AsyncIterator[pb.TailRequest]:
        yield pb.TailRequest()

    call = rpc.LogsStub(channel).Tail(requests())
    try:
        async with asyncio.timeout(within_s):
            assert isinstance(await call.read(), pb.TailBatch)
    finally:
        call.cancel()


CALLS = pytest.mark.parametrize("call", [probe, signals, snapshot, tail])


@CALLS
@pytest.mark.parametrize("channel", ["iad", "out"], ids=["it is called", "it calls"])
async def test_nothing_gets_through_a_cut_link_and_all_does_again(
    tmp_path: Path, call: Calling, channel: str
) -> None:
    async with two(tmp_path) as site:
        await call(site.channels[channel], SOON_S)
        before = site.peer.asked
        assert site.cut() == "the link fra <-> iad is cut for 10 s"
        assert site.cuts.now() == ["fra -> iad", "iad -> fra"]
        with pytest.raises((grpc.aio.AioRpcError, TimeoutError)):
            await call(site.channels[channel], NEVER_S)
        await asyncio.sleep(0.02)
        assert site.peer.asked == before
        await probe(site.channels["admin"])  # an operator is no peer
        assert site.cut("pass") == "the link fra <-> iad passes"
        assert site.cuts.now() == []
        await call(site.channels[channel], SOON_S)


async def test_a_stream_under_way_stands_still_and_goes_on(tmp_path: Path) -> None:
    async with two(tmp_path) as site:
        for channel in ("iad", "out"):
            stream = rpc.LogsStub(site.channels[channel]).Snapshot(pb.SnapshotRequest())
            first = await stream.read()
            assert isinstance(first, pb.SnapshotChunk) and first.offset == 0
            site.cut()
            read = asyncio.ensure_future(read_on(stream))
            await asyncio.sleep(0.7)  # longer than all of it takes
            assert not read.done()
            site.cut("pass")
            assert await read == 99


async def read_on(stream: Any) -> int:
    last = 0
    while isinstance(chunk := await stream.read(), pb.SnapshotChunk):
        assert chunk.offset == last + 1
        last = chunk.offset
    return last


async def test_one_way_what_is_asked_is_done_and_its_answer_does_not_come(tmp_path: Path) -> None:
    async with two(tmp_path) as site:
        for channel in ("iad", "out"):
            await probe(site.channels[channel])

        async def done(channel: str) -> bool:
            """No answer comes; whether it was done all the same."""
            before = site.peer.asked
            asking = asyncio.ensure_future(probe(site.channels[channel]))
            await asyncio.wait([asking], timeout=NEVER_S)
            assert not asking.done()
            if way_there[channel]:
                async with asyncio.timeout(SOON_S):
                    while site.peer.asked == before:  # noqa: ASYNC110 - it is asked
                        await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            return site.peer.asked == before + 1

        site.cut(both=False)  # what fra sends
        way_there = {"out": False, "iad": True}
        assert not await done("out")
        assert await done("iad")
        site.cut("pass")
        site.cut(a="iad", b="fra", both=False)
        way_there = {"out": True, "iad": False}
        assert await done("out")
        assert not await done("iad")


async def test_a_cut_ends_by_itself_and_a_call_before_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(under_test, "PATIENCE_S", 0.1)
    async with two(tmp_path) as site:
        site.cut()
        for channel in ("iad", "out"):
            with pytest.raises(grpc.aio.AioRpcError) as cut:
                await rpc.PeerStub(site.channels[channel]).Probe(pb.ProbeRequest())
            assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "cut (a fault)" in (cut.value.details() or "")
        monkeypatch.setattr(under_test, "LASTS_S", 0.2)
        site.cut()
        await asyncio.sleep(0.2)
        assert site.cuts.now() == []
        for channel in ("iad", "out"):
            await probe(site.channels[channel])


async def took(work: Awaitable[Any]) -> float:
    began = time.monotonic()
    await work
    return time.monotonic() - began


async def least(work: Callable[[], Awaitable[Any]], enough_s: float) -> float:
    """What it takes; more than once where the machine stood still meanwhile."""
    times = [await took(work())]
    while min(times) >= enough_s and len(times) < 5:
        times.append(await took(work()))
    return min(times)


async def answered(channel: grpc.aio.Channel) -> None:
    await rpc.PeerStub(channel).Probe(pb.ProbeRequest())


@pytest.mark.parametrize("channel", ["iad", "out"], ids=["it is called", "it calls"])
async def test_a_slow_link_delays_what_goes_out_and_heals(tmp_path: Path, channel: str) -> None:
    """What comes in, the other IDC delays itself."""
    async with two(tmp_path) as site:
        await answered(site.channels[channel])
        assert site.slow(delay_ms=300) == "the link fra <-> iad is slow for 10 s"
        assert site.cuts.slow() == ["fra -> iad", "iad -> fra"] and site.cuts.now() == []
        assert 0.3 <= await least(lambda: answered(site.channels[channel]), 0.6) < 0.6
        with pytest.raises(grpc.aio.AioRpcError) as late:  # an answer later than that is none
            await probe(site.channels[channel], NEVER_S)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert await least(lambda: answered(site.channels["admin"]), 0.3) < 0.3

        async def healed() -> None:
            site.slow(delay_ms=300)
            waiting = asyncio.ensure_future(answered(site.channels[channel]))
            await asyncio.sleep(0.05)
            site.cut("pass")
            await waiting

        assert await least(healed, 0.25) < 0.25 and site.cuts.slow() == []


async def test_many_messages_of_a_stream_are_on_a_slow_link_at_once(tmp_path: Path) -> None:
    """A hundred that are sent in half a second take that and the delay, and come in order."""
    async with two(tmp_path) as site:
        site.slow(delay_ms=300, jitter_ms=100)
        stream = rpc.LogsStub(site.channels["iad"]).Snapshot(pb.SnapshotRequest())
        first = await stream.read()
        assert isinstance(first, pb.SnapshotChunk) and first.offset == 0
        assert await took(read_on(stream)) < 15.0  # one after the other: 30 s
        await stream.read()

        async def batches() -> AsyncIterator[pb.SignalBatch]:
            for _ in range(20):
                yield pb.SignalBatch()

        took_s = await took(rpc.PeerStub(site.channels["out"]).Signals(batches()))
        assert 0.2 <= took_s < 5.0  # one after the other: 6 s


async def test_a_stream_under_way_becomes_slow_and_its_end_is_told(tmp_path: Path) -> None:
    async with two(tmp_path) as site:
        stream = rpc.LogsStub(site.channels["iad"]).Snapshot(pb.SnapshotRequest())
        await stream.read()
        site.slow(rate_kbit=1)  # 16 bytes a chunk: some eight a second
        reading = asyncio.ensure_future(read_on(stream))
        await asyncio.sleep(1.0)
        assert not reading.done()
        site.cut("pass")
        assert await reading == 99


async def test_a_witness_is_not_told_so_both_ways_are_held_here(tmp_path: Path) -> None:
    async with two(tmp_path) as site:
        site.cuts._witness = "iad"
        site.slow(delay_ms=200)
        assert 0.4 <= await least(lambda: answered(site.channels["out"]), 0.8) < 0.8


async def test_a_slow_link_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "LASTS_S", 0.3)
    async with two(tmp_path) as site:
        site.slow(delay_ms=5_000)
        assert await took(answered(site.channels["out"])) < 4.5
        assert site.cuts.slow() == []


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (pb.LinkFault(from_idc="fra", to_idc="fra", mode="drop"), "a link between fra and one of"),
        (pb.LinkFault(from_idc="iad", to_idc="sin", mode="drop"), "a link between fra and one of"),
        (pb.LinkFault(from_idc="fra", to_idc="iad", mode="reject"), "expected the mode pass or"),
        (pb.LinkFault(from_idc="fra", to_idc="iad", mode="pass", loss=0.5), "a loss of at least"),
    ],
)
def test_what_cannot_be_done(fault: pb.LinkFault, why: str) -> None:
    cuts = Cuts("fra", ["iad", "lon"], SystemClock(), random.Random(1))
    with pytest.raises(ValueError, match=why):
        cuts.apply(fault)
    assert cuts.now() == []
