"""The simulation's own parts: virtual time, processes that die or pause, links, gRPC over them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import pytest

from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.tls import caller_name
from services.sim.loop import Owner, SimLoop, Stuck
from services.sim.net import Net
from services.sim.rpc import SimChannel, SimServer


def _host(address: str) -> str:
    return address.rpartition(":")[0]


class Lab:
    def __init__(self, seed: int = 1) -> None:
        self.loop = SimLoop(seed)
        self.net = Net(self.loop, seed)
        self.net.site_at = _host

    def owner(self, name: str, site: str = "") -> Owner:
        owner = Owner(name)
        self.net.sites[owner] = site or name
        return owner

    def spawn(self, owner: Owner, work: Any) -> asyncio.Task[Any]:
        return owner.context.run(self.loop.create_task, work)

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(work)


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.loop.close()


def test_a_day_of_sleep_takes_no_time(lab: Lab) -> None:
    async def sleep() -> float:
        await asyncio.sleep(86_400)
        return lab.loop.time()

    assert lab.run(sleep()) == 86_400


def test_what_can_never_end_says_so(lab: Lab) -> None:
    with pytest.raises(Stuck):
        lab.run(lab.loop.create_future())


def test_work_in_threads_is_done_in_the_loop_later_and_in_order(lab: Lab) -> None:
    done: list[int] = []
    executor = lab.loop.executor(1, "disk")

    async def work() -> None:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, done.append, n) for n in range(5)]
        assert done == []
        await asyncio.gather(*calls)
        assert await asyncio.to_thread(lambda: 7) == 7

    lab.run(work())
    assert done == [0, 1, 2, 3, 4]
    assert lab.loop.time() > 0


def test_a_loop_that_is_alone_knows_itself_without_asking_the_kernel(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimLoop, "alone", True)
    own = asyncio.get_running_loop

    async def work() -> None:
        await asyncio.sleep(1)
        assert asyncio.get_running_loop() is asyncio.events._get_running_loop() is lab.loop
        assert asyncio.get_running_loop is not own
        async with asyncio.timeout(1):
            await asyncio.wait_for(asyncio.Event().wait(), 0.5)

    with pytest.raises(TimeoutError):
        lab.run(work())
    assert asyncio.get_running_loop is own
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_timer_that_is_called_off_lets_go_of_what_it_would_have_called(lab: Lab) -> None:
    class Big:
        pass

    async def work() -> None:
        held = Big()
        freed = weakref.ref(held)
        timers = [lab.loop.call_later(n, print, held) for n in range(3)]
        soon = lab.loop.call_soon(print, held)
        del held
        for handle in (*timers, soon):
            handle.cancel()
            handle.cancel()
            assert handle.cancelled()
            assert "cancelled" in repr(handle)
        assert freed() is None
        await asyncio.sleep(5)

    lab.run(work())
    assert lab.loop._timer_cancelled_count == 0


def test_a_crashed_process_makes_no_further_step_and_a_paused_one_makes_them_later(
    lab: Lab,
) -> None:
    ticks: dict[str, list[float]] = {"dies": [], "waits": []}

    async def tick(name: str) -> None:
        try:
            while True:
                await asyncio.sleep(1)
                ticks[name].append(lab.loop.time())
        finally:
            ticks[name].append(-1.0)

    async def judge() -> None:
        dies, waits = lab.owner("dies"), lab.owner("waits")
        lab.spawn(dies, tick("dies"))
        lab.spawn(waits, tick("waits"))
        await asyncio.sleep(2.5)
        lab.loop.crash(dies)
        lab.loop.pause(waits)
        await asyncio.sleep(3)
        lab.loop.resume(waits)
        await asyncio.sleep(1.1)
        assert ticks == {"dies": [1.0, 2.0], "waits": [1.0, 2.0, 5.5, 6.5]}

    lab.run(judge())


# --------------------------------------------------------------------------------------- gRPC


class Peer(rpc.PeerServicer):
    def __init__(self) -> None:
        self.batches = 0
        self.broken_off = 0

    async def Probe(self, request: peer.ProbeRequest, context: Any) -> peer.ProbeReply:
        if request.from_idc == "refused":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no", (("outcome", "refused"),))
        if request.from_idc == "slow":
            await asyncio.sleep(100)
        return peer.ProbeReply(idc=caller_name(context))

    async def Facts(self, request: peer.StatusRequest, context: Any) -> peer.StatusReply:
        return peer.StatusReply()

    async def Signals(self, requests: AsyncIterator[peer.SignalBatch], context: Any) -> Any:
        try:
            async for _ in requests:
                self.batches += 1
        except asyncio.CancelledError:
            self.broken_off += 1
            raise
        return peer.SignalsDone(signals=self.batches)


async def served(lab: Lab, site: str = "fra") -> tuple[Owner, Peer]:
    owner, servicer = lab.owner(f"{site}.node", site), Peer()

    async def start() -> None:
        server = SimServer(lab.net, [], f"{site}:1")
        rpc.add_PeerServicer_to_server(servicer, server)  # type: ignore[arg-type]
        await server.start()

    await lab.spawn(owner, start())
    return owner, servicer


def as_caller(work: Callable[[Lab, Any], Awaitable[None]]) -> Callable[[Lab], None]:
    """The body runs as the process ``iad`` and has a stub of the Peer service."""

    def test(lab: Lab) -> None:
        async def body() -> None:
            channel: Any = SimChannel(lab.net, "iad", "fra:1")
            await work(lab, rpc.PeerStub(channel))

        lab.run(lab.spawn(lab.owner("iad"), body()))

    test.__name__ = work.__name__
    return test


def failure(stub: Any, timeout: float | None = 5.0, who: str = "x") -> Any:
    async def call() -> grpc.StatusCode:
        try:
            await stub.Probe(peer.ProbeRequest(from_idc=who), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    return call()


async def _calls_name_their_caller(lab: Lab, stub: Any) -> None:
    await served(lab)
    reply = await stub.Probe(peer.ProbeRequest(), timeout=1.0)
    assert reply.idc == "iad"
    assert 0.003 < lab.loop.time() < 0.1
    assert await failure(stub, who="refused") is grpc.StatusCode.NOT_FOUND


test_calls_name_their_caller = as_caller(_calls_name_their_caller)


async def _a_call_that_is_over_is_freed_without_the_collector(lab: Lab, stub: Any) -> None:
    await served(lab)
    enabled = gc.isenabled()
    gc.disable()
    try:
        call = stub.Probe(peer.ProbeRequest(), timeout=1.0)
        freed = weakref.ref(call)
        await call
        del call
        await asyncio.sleep(5)
        assert freed() is None
    finally:
        if enabled:
            gc.enable()


test_a_call_that_is_over_is_freed_without_the_collector = as_caller(
    _a_call_that_is_over_is_freed_without_the_collector
)


async def _nobody_listens(lab: Lab, stub: Any) -> None:
    assert await failure(stub) is grpc.StatusCode.UNAVAILABLE
    await asyncio.sleep(1.0)
    await served(lab)
    assert await failure(stub) is grpc.StatusCode.OK


test_nobody_listens = as_caller(_nobody_listens)


async def _a_deadline_ends_a_call_at_both_ends(lab: Lab, stub: Any) -> None:
    await served(lab)
    began = lab.loop.time()
    assert await failure(stub, 1.0, "slow") is grpc.StatusCode.DEADLINE_EXCEEDED
    assert lab.loop.time() == pytest.approx(began + 1.0)


test_a_deadline_ends_a_call_at_both_ends = as_caller(_a_deadline_ends_a_call_at_both_ends)


@pytest.mark.parametrize("way", [("iad", "fra"), ("fra", "iad")])
def test_keepalive_finds_a_link_that_is_cut_one_way(lab: Lab, way: tuple[str, str]) -> None:
    async def body(lab: Lab, stub: Any) -> None:
        await served(lab)
        assert await failure(stub) is grpc.StatusCode.OK
        lab.net.cut(*way)
        began = lab.loop.time()
        assert await failure(stub, None, "slow") is grpc.StatusCode.UNAVAILABLE
        assert 3.9 < lab.loop.time() - began < 5
        lab.net.heal(*way)
        await asyncio.sleep(2)
        assert await failure(stub) is grpc.StatusCode.OK

    as_caller(body)(lab)


async def _a_short_cut_delays_and_loses_nothing(lab: Lab, stub: Any) -> None:
    _, servicer = await served(lab)

    async def batches() -> AsyncIterator[peer.SignalBatch]:
        for _ in range(100):
            await asyncio.sleep(0.01)
            yield peer.SignalBatch()

    call = stub.Signals(batches())
    await asyncio.sleep(0.5)
    lab.net.cut("iad", "fra")
    await asyncio.sleep(1.0)
    seen = servicer.batches
    assert 0 < seen < 60
    lab.net.heal("iad", "fra")
    assert (await call).signals == 100


test_a_short_cut_delays_and_loses_nothing = as_caller(_a_short_cut_delays_and_loses_nothing)


async def _a_dead_process_resets_and_a_dead_machine_is_silent(lab: Lab, stub: Any) -> None:
    owner, _ = await served(lab)
    call = asyncio.ensure_future(failure(stub, None, "slow"))
    await asyncio.sleep(0.5)
    lab.loop.crash(owner)
    lab.net.crash(owner)
    began = lab.loop.time()
    assert await call is grpc.StatusCode.UNAVAILABLE
    assert lab.loop.time() - began < 0.1
    owner, _ = await served(lab)
    await asyncio.sleep(2)
    call = asyncio.ensure_future(failure(stub, None, "slow"))
    await asyncio.sleep(0.5)
    lab.loop.crash(owner)
    lab.net.crash(owner, silently=True)
    lab.net.down.add("fra")
    began = lab.loop.time()
    assert await call is grpc.StatusCode.UNAVAILABLE
    assert lab.loop.time() - began < 5


test_a_dead_process_resets_and_a_dead_machine_is_silent = as_caller(
    _a_dead_process_resets_and_a_dead_machine_is_silent
)


# ------------------------------------------------------------------------------- byte streams


class Echo(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: Any = None
        self.got = b""
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_bytes_arrive_in_order_and_the_end_after_them(lab: Lab) -> None:
    accepted: list[Echo] = []

    def accept() -> Echo:
        accepted.append(Echo())
        return accepted[-1]

    async def listen() -> None:
        await asyncio.get_running_loop().create_server(accept, "fra", 2)

    async def body() -> None:
        await lab.spawn(lab.owner("fra"), listen())
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(Echo, "fra", 2)
        for n in range(50):
            transport.write(bytes([n]) * 100)
        transport.close()
        assert await accepted[0].lost is None
        assert accepted[0].got == b"".join(bytes([n]) * 100 for n in range(50))
        assert protocol.lost.done()
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Echo, "fra", 3)

    lab.run(lab.spawn(lab.owner("client"), body()))
