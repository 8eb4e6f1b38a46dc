"""Which way a front links, whatever its registry and its route instances do."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import grpc
import pytest

from imcore.errors import Unavailable
from imcore.proto import front_pb2_grpc as rpc
from imcore.runtime import SystemClock
from services.engines.disk import RealDisk
from services.engines.registry_store import RegistryStore
from services.ports import Registry, Versioned
from services.split import ways
from services.split.route import NO_CORE
from services.split.ways import PREFIX, ByRoute, choose, described

GATEWAY = "fra-gw1.0a"


class Known:
    """The registry, which may be away."""

    away = False

    def __init__(self, store: RegistryStore) -> None:
        self._store = store

    async def range(self, prefix: bytes, *more: bytes) -> list[Versioned]:
        if self.away:
            raise Unavailable("etcd is away")
        return await self._store.range(prefix, *more)

    async def comes(self, name: str, address: str = "127.0.0.1:9") -> None:
        await self._store.put(PREFIX + name.encode(), json.dumps(described(name, address)).encode())

    async def goes(self, name: str) -> None:
        await self._store.put(PREFIX + name.encode(), None)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Known]:
    store = await RegistryStore.open(str(tmp_path), RealDisk(), SystemClock(), random.Random(1))
    yield Known(store)
    await store.close()


@pytest.fixture
async def way(registry: Known) -> AsyncIterator[ByRoute]:
    async with grpc.aio.insecure_channel("127.0.0.1:9") as core:
        found = ByRoute(
            GATEWAY, rpc.FrontStub(core), cast("Registry", registry),
            grpc.aio.insecure_channel, SystemClock(), random.Random(1),
        )  # fmt: skip
        yield found
        await found.close()


async def test_it_links_to_the_core_while_there_is_no_route_instance(
    registry: Known, way: ByRoute
) -> None:
    core = await way.next()
    assert way.route == ""
    await registry.comes("one")
    assert await way.next() is not core and way.route == "one"
    await registry.goes("one")
    assert await way.next() is core and way.route == ""


async def test_one_that_only_lost_the_core_is_waited_for_and_one_that_is_gone_is_not(
    registry: Known, way: ByRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        await registry.comes(name)
    chosen = choose(GATEWAY, {"one": "", "two": ""})
    assert chosen is not None
    first, other = chosen[0], {"one": "two", "two": "one"}[chosen[0]]
    stub = await way.next()
    assert way.route == first
    await registry.goes(first)  # its lease has ended with that of everybody
    way.ended(NO_CORE)
    assert await way.next() is stub and way.route == first
    way.ended("Internal error from Core")  # of gRPC, for a call that it has refused
    assert await way.next() is stub and way.route == first
    monkeypatch.setattr(ways, "WAIT_S", 0.0)
    way.ended(NO_CORE)
    way.ended("it does not answer")
    await registry.comes(first)  # by its lease it is still there
    await way.next()
    assert way.route == other
    monkeypatch.setattr(ways, "SHUN_S", 0.0)
    way.ended("it does not answer")
    way._shunned.clear()
    await way.next()
    assert way.route == first


async def test_a_registry_that_is_away_keeps_no_gateway_from_its_core(
    registry: Known, way: ByRoute
) -> None:
    core = await way.next()
    await registry.comes("one")
    await way.next()
    registry.away = True
    way.ended("it does not answer")
    assert await way.next() is core


async def test_what_nobody_can_read_in_the_registry_is_no_route_instance(
    registry: Known, way: ByRoute, caplog: pytest.LogCaptureFixture
) -> None:
    for value in (b"", b"[]", b"{}", b'{"route": "one"}', b"\xff"):
        await registry._store.put(PREFIX + b"one", value)
        await way.next()
        assert way.route == ""
    assert caplog.text.count("unreadable") == 5


async def test_it_leaves_the_core_for_one_that_stays_and_at_once_without_sessions(
    registry: Known, way: ByRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "LOOK_S", 0.01)
    monkeypatch.setattr(ways, "LOOK_MAX_S", 0.01)
    monkeypatch.setattr(ways, "STEADY_S", 0.2)
    monkeypatch.setattr(ways, "SPREAD_S", 0.0)
    clock = SystemClock()
    await way.next()
    await registry.comes("one")
    began = clock.now()
    await way.better(lambda: True)
    assert clock.now() - began < 0.15
    await way.better(lambda: False)
    assert clock.now() - began > 0.2


async def test_one_that_is_cut_off_from_a_core_that_is_there_is_left(
    registry: Known, way: ByRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "WAIT_S", 0.1)
    monkeypatch.setattr(ways, "WAIT_MAX_S", 0.3)
    core = await way.next()
    await registry.comes("one")
    stub = await way.next()
    assert stub is not core
    await registry.goes("one")  # it keeps no lease without a link, and the registry answers
    for _ in range(10):
        way.ended(NO_CORE)
        stub = await way.next()
        await asyncio.sleep(0.05)
    assert stub is core
