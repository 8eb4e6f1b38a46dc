"""A broker that does not answer in a second: whom a request is not waited for any more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

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
