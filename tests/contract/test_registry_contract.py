"""What every Registry adapter must do. A further adapter adds its factory to ADAPTERS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest

from imcore.errors import Refused, Unavailable
from imcore.proto import peer_pb2_grpc
from imcore.runtime import ManualClock
from imctl.testing.etcd import EtcdProcess
from services.engines.disk import Disk, RealDisk
from services.engines.etcd.registry import EtcdRegistry
from services.engines.registry_grpc import RegistryServicer, RemoteRegistry
from services.engines.registry_store import RegistryStore
from services.ports import Registry, WatchEvents
from services.sim.disk import SimDisk

HISTORY = 20


@dataclass
class Rig:
    """A registry with the means to let time pass, to make it forget and to lose it."""

    registry: Registry
    elapse: Callable[[float], Awaitable[None]]  # seconds of the registry's time
    forget: Callable[[], Awaitable[None]]  # the history so far, not the keys
    full: Callable[[], AbstractAsyncContextManager[None]]  # the disk, while the block runs
    restart: Callable[[], AbstractAsyncContextManager[Registry]]
    # How exactly leases end: not yet so long before their time, surely so long after it, and which
    # is the shortest time that one gets.
    early_s: float = 0.1
    late_s: float = 0.1
    lease_least_s: float = 0.0


Front = Callable[[Registry], AbstractAsyncContextManager[Registry]]


@contextlib.asynccontextmanager
async def direct(registry: Registry) -> AsyncIterator[Registry]:
    yield registry


@contextlib.asynccontextmanager
async def served(registry: Registry) -> AsyncIterator[Registry]:
    server = grpc.aio.server()
    peer_pb2_grpc.add_RegistryServicer_to_server(RegistryServicer(registry), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield RemoteRegistry(channel, "fra")
    await server.stop(0)


# ------------------------------------------------------------------------------- embedded


async def open_store(folder: Path, clock: ManualClock, disk: Disk) -> RegistryStore:
    return await RegistryStore.open(str(folder / "registry"), disk, clock, random.Random(), HISTORY)


@contextlib.asynccontextmanager
async def embedded(
    front: Front, request: pytest.FixtureRequest, disk: Disk | None = None
) -> AsyncIterator[Rig]:
    folder: Path = request.getfixturevalue("tmp_path")
    clock, disk = ManualClock(), disk or RealDisk()
    faults = disk.faults
    store = await open_store(folder, clock, disk)

    async def elapse(seconds: float) -> None:
        clock.advance(seconds)

    async def forget() -> None:
        for n in range(3 * HISTORY):
            await store.put(b"forget", b"%d" % n)

    @contextlib.asynccontextmanager
    async def full() -> AsyncIterator[None]:
        faults.full = True
        yield
        faults.full = False

    @contextlib.asynccontextmanager
    async def restart() -> AsyncIterator[Registry]:
        await store.close()
        again = await open_store(folder, clock, disk)
        async with front(again) as registry:
            yield registry
        await again.close()

    async with front(store) as registry:
        yield Rig(registry, elapse, forget, full, restart)
    await store.close()


def on_simulated_disk(
    front: Front, request: pytest.FixtureRequest
) -> AbstractAsyncContextManager[Rig]:
    """The same adapter on the simulation's disk."""
    folder: Path = request.getfixturevalue("tmp_path")
    return embedded(front, request, SimDisk(folder, "contract"))


# ----------------------------------------------------------------------------------- etcd


@contextlib.asynccontextmanager
async def etcd(front: Front, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    process: EtcdProcess = request.getfixturevalue("etcd_process")
    settings = process.settings(f"contract/{secrets.token_hex(4)}/")
    store = EtcdRegistry(settings, "fra")

    @contextlib.asynccontextmanager
    async def restart() -> AsyncIterator[Registry]:
        await asyncio.sleep(0.2)  # a watch that was just begun reaches it first
        await asyncio.to_thread(process.kill)
        await asyncio.to_thread(process.start)
        again = EtcdRegistry(settings, "fra")
        async with front(again) as registry:
            yield registry
        await again.close()

    async with front(store) as registry:
        yield Rig(
            registry,
            asyncio.sleep,
            process.compact,
            process.full,
            restart,
            early_s=0.8,  # a busy machine
            late_s=2.5,  # half a second until it looks; an election's second after a restart
            lease_least_s=2.0,
        )
    await store.close()


ADAPTERS = {
    "embedded": (embedded, direct),
    "embedded-over-grpc": (embedded, served),
    "embedded-on-simulated-disk": (on_simulated_disk, direct),
    "etcd": (etcd, direct),
    "etcd-over-grpc": (etcd, served),
}


@pytest.fixture(params=sorted(ADAPTERS))
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    adapter, front = ADAPTERS[request.param]
    async with adapter(front, request) as opened:
        yield opened


@pytest.fixture
def registry(rig: Rig) -> Registry:
    return rig.registry


async def put(registry: Registry, key: bytes, value: bytes, lease: int = 0) -> int:
    await registry.put(key, value, lease)
    stored = await registry.get(key)
    assert stored is not None and stored.value == value
    return stored.mod_revision


async def test_a_swap_needs_the_revision_that_is_there(registry: Registry) -> None:
    assert await registry.get(b"k") is None
    done, first = await registry.compare_and_swap(b"k", 0, b"1")
    assert done and first is not None and first.value == b"1"
    assert await registry.compare_and_swap(b"k", 0, b"2") == (False, first)
    assert await registry.compare_and_swap(b"k", first.mod_revision + 1, b"2") == (False, first)
    done, second = await registry.compare_and_swap(b"k", first.mod_revision, b"")
    assert done and second is not None and second.mod_revision > first.mod_revision
    assert await registry.get(b"k") == second
    assert await registry.compare_and_swap(b"k", first.mod_revision, None) == (False, second)
    assert await registry.compare_and_swap(b"k", second.mod_revision, None) == (True, None)
    assert await registry.get(b"k") is None
    assert await registry.compare_and_swap(b"k", second.mod_revision, b"x") == (False, None)


async def test_of_concurrent_swaps_one_wins(registry: Registry) -> None:
    results = await asyncio.gather(
        *(registry.compare_and_swap(b"k", 0, b"%d" % n) for n in range(20))
    )
    assert sum(done for done, _ in results) == 1
    winner = await registry.get(b"k")
    assert {current for _, current in results} == {winner}


async def test_a_range_is_ordered_and_holds_the_prefix_only(registry: Registry) -> None:
    for key in (b"b/2", b"a", b"b/1", b"c", b"b"):
        await registry.put(key, key)
    await registry.put(b"b/3", b"gone")
    await registry.put(b"b/3", None)
    assert [v.key for v in await registry.range(b"b/")] == [b"b/1", b"b/2"]
    assert [v.key for v in await registry.range(b"c", b"none", b"b/")] == [b"c", b"b/1", b"b/2"]
    assert [v.key for v in await registry.range(b"")] == [b"a", b"b", b"b/1", b"b/2", b"c"]


async def test_a_lease_takes_its_keys_along(rig: Rig) -> None:
    registry = rig.registry
    lease = await registry.grant_lease(2000)
    await registry.put(b"mine", b"1", lease)
    await registry.put(b"moved", b"1", lease)
    await registry.put(b"moved", b"2")  # no lease any more
    await rig.elapse(2 - rig.early_s)
    assert await registry.keep_alive(lease)
    await rig.elapse(2 - rig.early_s)
    assert await registry.get(b"mine") is not None
    await rig.elapse(rig.early_s + rig.late_s)
    assert not await registry.keep_alive(lease)
    assert await registry.get(b"mine") is None
    assert await registry.get(b"moved") is not None
    with pytest.raises(Refused):
        await registry.put(b"mine", b"late", lease)
    with pytest.raises(Refused):
        await registry.compare_and_swap(b"mine", 0, b"late", lease)


async def test_a_lease_ends_without_anybody_asking(rig: Rig) -> None:
    lease = await rig.registry.grant_lease(1000)
    await rig.registry.put(b"k", b"1", lease)
    watch = rig.registry.watch(b"k")
    assert [e.exists for e in (await anext(watch)).events] == [True]
    await rig.elapse(max(1, rig.lease_least_s) + rig.late_s)
    gone = await asyncio.wait_for(anext(watch), 2)
    assert [(e.key, e.exists) for e in gone.events] == [(b"k", False)]
    await aclose(watch)


async def test_a_revoked_lease_is_over(registry: Registry) -> None:
    lease = await registry.grant_lease(1000)
    other = await registry.grant_lease(1000)
    await registry.put(b"k", b"1", lease)
    await registry.put(b"o", b"1", other)
    await registry.revoke_lease(lease)
    assert [v.key for v in await registry.range(b"")] == [b"o"]
    assert not await registry.keep_alive(lease)
    assert await registry.keep_alive(other)
    await registry.revoke_lease(lease)


async def test_a_lease_needs_a_time(registry: Registry) -> None:
    with pytest.raises(ValueError, match="at least 1 ms"):
        await registry.grant_lease(0)


async def aclose(watch: AsyncIterator[WatchEvents]) -> None:
    await watch.aclose()  # type: ignore[attr-defined]


async def collect(watch: AsyncIterator[WatchEvents], count: int) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    while len(found) < count:
        batch = await asyncio.wait_for(anext(watch), 2)
        found += [(e.key, e.value if e.exists else b"-") for e in batch.events]
    await aclose(watch)
    return found


async def test_a_watch_begins_with_a_full_read(registry: Registry) -> None:
    await registry.put(b"k/1", b"1")
    await registry.put(b"other", b"1")
    watch = registry.watch(b"k/")
    first = await anext(watch)
    assert [e.key for e in first.events] == [b"k/1"] and not first.compacted
    await registry.put(b"other", b"2")
    await registry.put(b"k/2", b"2")
    await registry.put(b"k/1", None)
    assert await collect(watch, 2) == [(b"k/2", b"2"), (b"k/1", b"-")]


async def test_a_watch_of_nothing_says_so_at_once(registry: Registry) -> None:
    watch = registry.watch(b"none/")
    assert (await asyncio.wait_for(anext(watch), 2)).events == []
    await aclose(watch)


async def test_a_watch_resumes_where_it_ended(registry: Registry) -> None:
    revisions = [await put(registry, b"k", b"%d" % n) for n in range(5)]
    watch = registry.watch(b"k", revisions[2])
    assert await collect(watch, 3) == [(b"k", b"2"), (b"k", b"3"), (b"k", b"4")]
    watch = registry.watch(b"k", revisions[-1] + 1)
    waiting = asyncio.ensure_future(collect(watch, 1))
    await asyncio.sleep(0)
    await registry.put(b"k", b"new")
    assert await waiting == [(b"k", b"new")]


async def test_a_watch_of_what_is_forgotten_reads_everything(rig: Rig) -> None:
    registry = rig.registry
    first = await put(registry, b"k/old", b"1")
    await registry.put(b"k/busy", b"1")
    await registry.put(b"k/busy", b"2")
    await rig.forget()
    watch = registry.watch(b"k/", first)
    found = await anext(watch)
    assert found.compacted
    assert [e.key for e in found.events] == [b"k/busy", b"k/old"]
    await registry.put(b"k/busy", b"on")
    assert await collect(watch, 1) == [(b"k/busy", b"on")]


async def test_a_watch_from_the_future_reads_everything(registry: Registry) -> None:
    """A watcher of a store that was wiped since."""
    await registry.put(b"k", b"1")
    watch = registry.watch(b"k", 1_000_000)
    found = await asyncio.wait_for(anext(watch), 2)
    assert found.compacted and [e.value for e in found.events] == [b"1"]
    await aclose(watch)


async def test_a_cancelled_watch_ends_cleanly(registry: Registry) -> None:
    watch = registry.watch(b"k")
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await registry.put(b"k", b"1")
    assert (await registry.get(b"k")) is not None


async def test_everything_is_there_after_a_restart(rig: Rig) -> None:
    registry = rig.registry
    store_id = await registry.store_id()
    assert len(store_id) == 16
    lease = await registry.grant_lease(2000)
    await registry.put(b"leased", b"1", lease)
    await registry.put(b"gone", b"1")
    await registry.put(b"gone", None)
    revision = await put(registry, b"kept", b"1")
    await rig.elapse(2 - rig.early_s)
    watch = registry.watch(b"")
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    async with rig.restart() as again:
        with pytest.raises(Unavailable):
            await waiting
        assert await again.store_id() == store_id
        assert [v.key for v in await again.range(b"")] == [b"kept", b"leased"]
        swapped, current = await again.compare_and_swap(b"kept", revision, b"2")
        assert swapped and current is not None and current.mod_revision > revision
        await rig.elapse(2 - rig.early_s)  # the lease has its full time again
        assert await again.keep_alive(lease)
        await rig.elapse(2 + rig.late_s)
        assert not await again.keep_alive(lease)
        assert await again.get(b"leased") is None


async def test_a_full_disk_is_said_and_nothing_is_done(rig: Rig) -> None:
    registry = rig.registry
    await registry.put(b"k", b"1")
    async with rig.full():
        with pytest.raises(Unavailable, match="disk is full"):
            await registry.put(b"k", b"2")
        with pytest.raises(Unavailable, match="disk is full"):
            await registry.compare_and_swap(b"n", 0, b"2")
    assert [v.value for v in await registry.range(b"")] == [b"1"]
    await registry.put(b"k", b"3")
    async with rig.restart() as again:
        assert [v.value for v in await again.range(b"")] == [b"3"]


async def test_a_lease_ends_for_who_reads_though_the_disk_is_full(rig: Rig) -> None:
    """Else gateways that take nothing any more would be found, and votes stand, until there is
    room."""
    registry = rig.registry
    lease = await registry.grant_lease(1000)
    await registry.put(b"leased", b"1", lease)
    await registry.put(b"k", b"1")
    async with rig.full():
        await rig.elapse(max(1, rig.lease_least_s) + rig.late_s)
        assert await registry.get(b"leased") is None
        assert [v.key for v in await registry.range(b"")] == [b"k"]
    swapped, _ = await registry.compare_and_swap(b"leased", 0, b"2")
    assert swapped
