"""A broker that does not answer in a second: whom a request is not waited for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import cast

import pytest
from aiokafka.conn import AIOKafkaConnection

from imcore.errors import Unavailable
from services.engines.kafka import cluster as module
from services.engines.kafka.cluster import WRITE, At, Cluster
from services.engines.kafka.settings import KafkaSettings

DOUBT_S = 0.05
LOG, OTHER = At("log", 0), At("other", 3)


class Watched(Cluster):
    """Whose looks find leaders that a test says, and reach no broker."""

    def __init__(self, brokers: int) -> None:
        super().__init__(KafkaSettings(("127.0.0.1:9",), "im"), "fra")
        self._nodes = {number: ("127.0.0.1", 9000 + number) for number in range(brokers)}
        self._leaders = {LOG: 0, OTHER: 0}
        self.found: dict[At, int] = {}
        self.looks: list[list[str]] = []
        self.dropped: list[int] = []

    async def look(self, topics: Sequence[str] | None) -> set[str]:
        self.looks.append(list(topics or ()))
        self._leaders |= self.found
        return set()

    def _drop(self, node: int, lane: str) -> None:
        self.dropped.append(node)


class Silent(Cluster):
    """Whose brokers take connections and say nothing, but for those that a test names."""

    def __init__(self, brokers: int, deadline_s: float, *answer: int) -> None:
        places = tuple(f"127.0.0.1:{number}" for number in range(1, brokers + 1))
        super().__init__(KafkaSettings(places, "im", deadline_s=deadline_s), "fra")
        self.answer = answer
        self.tried: list[int] = []

    async def _connect(self, host: str, port: int) -> AIOKafkaConnection:
        self.tried.append(port)
        if port not in self.answer:
            try:
                await asyncio.Event().wait()
            finally:
                self._failed((host, port))
        return cast(AIOKafkaConnection, Answering())

    def _keep(self, key: tuple[int, str], new: AIOKafkaConnection) -> AIOKafkaConnection:
        return new

    def _close(self, connection: AIOKafkaConnection) -> None: ...


class Answering:
    async def send(self, request: object) -> SimpleNamespace:
        return SimpleNamespace(brokers=[(7, "127.0.0.1", 1)], controller_id=7, topics=[])


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DOUBT_S", DOUBT_S)


async def doubted(cluster: Cluster, requests: Sequence[At], seconds: float) -> None:
    """So many requests to broker 0, as the leader of these, that are not answered for so long."""
    with ExitStack() as stack:
        for at in requests:
            stack.enter_context(cluster._doubting(0, WRITE, 0.0, [at]))
        await asyncio.sleep(seconds)


async def test_of_one_broker_nobody_can_take_the_lead_so_it_is_asked_nothing_more() -> None:
    cluster = Watched(brokers=1)
    await doubted(cluster, [LOG] * 20, 6 * DOUBT_S)
    assert cluster.looks == [] == cluster.dropped


async def test_many_requests_that_are_doubted_ask_no_more_than_one() -> None:
    cluster = Watched(brokers=3)
    await doubted(cluster, [LOG] * 20 + [OTHER] * 20, 8 * DOUBT_S)
    assert 1 <= len(cluster.looks) <= 8
    assert all(topics == ["log", "other"] for topics in cluster.looks)
    assert cluster.dropped == []


async def test_once_others_lead_it_is_not_waited_for() -> None:
    cluster = Watched(brokers=3)
    cluster.found = {LOG: 1}
    await doubted(cluster, [OTHER], 3 * DOUBT_S)
    assert cluster.looks and cluster.dropped == []
    await doubted(cluster, [LOG], 3 * DOUBT_S)
    assert 0 in cluster.dropped


async def test_what_is_answered_in_time_is_not_doubted() -> None:
    cluster = Watched(brokers=3)
    await doubted(cluster, [LOG], DOUBT_S / 5)
    await asyncio.sleep(2 * DOUBT_S)
    assert cluster.looks == []


async def test_a_look_up_has_one_deadline_however_many_brokers_are_silent_and_ask_at_once() -> None:
    cluster, loop = Silent(4, 0.4), asyncio.get_running_loop()
    began = loop.time()
    asked = [cluster.look([]), cluster.leader(LOG), cluster.shapes(["log"]), cluster.bounds(LOG)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in found] == [Unavailable] * 4
    assert loop.time() - began < 4 * 0.4
    assert set(cluster.tried) == {1, 2, 3, 4}


async def test_silent_brokers_leave_time_for_one_that_answers() -> None:
    cluster = Silent(3, 1.0, 3)
    async with asyncio.timeout(1.5):
        await cluster.look([])
    assert cluster.tried == [1, 2, 3] and cluster._nodes == {7: ("127.0.0.1", 1)}
