"""Real MirrorMakers between real Kafkas: every record once and in order, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from imcore.runtime import SystemClock
from imctl.engines.binaries import Program
from imctl.testing.mm2 import Mesh, gave_up, running
from services.engines.kafka import admin
from services.engines.kafka.cluster import Cluster
from services.engines.kafka.mirror_lag import MirrorLag
from services.engines.kafka.settings import KafkaSettings
from services.linkproxy.model import Mode

Figures = Callable[[str, object], None]
PARTITIONS = 2
FIRST_S = 90.0  # until the first record is through, on a busy machine
BACK_S = 60.0  # until all is through after a fault
RECORD = struct.Struct(">QQd")  # partition, number in it, when it was sent
VALUE = b"x" * 200


def client(settings: KafkaSettings) -> dict[str, Any]:
    return {
        "bootstrap_servers": list(settings.brokers),
        "security_protocol": "SSL",
        "ssl_context": settings.ssl_context(),
    }


class Stream:
    """What goes into the log of one IDC, and what comes out of its copy in another."""

    def __init__(self, mesh: Mesh, source: str, target: str, incarnation: int = 1) -> None:
        self.topic = f"{mesh.prefix}.log.{incarnation}"
        self.copy = f"{source}.{self.topic}"
        self.sent = [0] * PARTITIONS
        self.seen: list[list[int]] = [[] for _ in range(PARTITIONS)]
        self.arrivals: list[tuple[float, float]] = []  # when, how long after it was sent
        self._source, self._target = mesh.settings(source), mesh.settings(target)
        self._source_name = source

    async def create(self) -> None:
        on = Cluster(self._source, self._source_name)
        await admin.create(on, [admin.log_topic(self.topic, PARTITIONS, self._source)])
        await on.close()

    async def send(self, rate: float, seconds: float) -> None:
        """Acked when it returns; aiokafka repeats what a broker's death has cut off."""
        producer = AIOKafkaProducer(
            **client(self._source), acks="all", enable_idempotence=True, request_timeout_ms=60_000
        )
        await producer.start()
        try:
            began, number, waiting = time.monotonic(), 0, []
            while (now := time.monotonic()) < began + seconds:
                while number < (now - began) * rate:
                    partition = number % PARTITIONS
                    head = RECORD.pack(partition, self.sent[partition], time.time())
                    self.sent[partition] += 1
                    sending = producer.send(self.topic, head + VALUE, partition=partition)
                    waiting.append(await sending)
                    number += 1
                await asyncio.sleep(0.002)
            await asyncio.wait_for(asyncio.gather(*waiting), BACK_S)
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._read())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _read(self) -> None:
        consumer = AIOKafkaConsumer(
            **client(self._target),
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            metadata_max_age_ms=1_000,
            fetch_max_wait_ms=100,
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self.copy, number) for number in range(PARTITIONS)])
            while True:
                batches = await consumer.getmany(timeout_ms=200)
                now = time.time()
                for records in batches.values():
                    for record in records:
                        partition, number, sent = RECORD.unpack_from(record.value)
                        self.seen[partition].append(number)
                        self.arrivals.append((now, now - sent))
        finally:
            await consumer.stop()

    async def through(self, within_s: float = BACK_S) -> None:
        """Everything that was sent has come out; then: once, and in order."""
        deadline = time.monotonic() + within_s
        while any(len(seen) < sent for seen, sent in zip(self.seen, self.sent, strict=True)):
            assert time.monotonic() < deadline, (self.sent, [len(one) for one in self.seen])
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)  # what comes twice comes last
        assert self.seen == [list(range(sent)) for sent in self.sent]

    def lag(self) -> str:
        lags = sorted(lag * 1000 for _, lag in self.arrivals)
        at = statistics.quantiles(lags, n=100)
        return f"p50 {at[49]:.0f} ms, p99 {at[98]:.0f} ms, max {lags[-1]:.0f} ms of {len(lags)}"

    def stall(self) -> str:
        """The longest time without an arrival."""
        times = [when for when, _ in self.arrivals]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return f"{max(gaps):.1f} s"


@pytest.fixture
def two(kafka_program: Program, tmp_path: Path, pki_dir: Path) -> Iterator[Mesh]:
    with running(kafka_program, tmp_path, pki_dir, ("fra", "iad")) as mesh:
        yield mesh


@pytest.fixture
def three(kafka_program: Program, tmp_path: Path, pki_dir: Path) -> Iterator[Mesh]:
    with running(kafka_program, tmp_path, pki_dir, ("fra", "iad", "sin")) as mesh:
        yield mesh


@contextlib.asynccontextmanager
async def measured(mesh: Mesh, target: str) -> AsyncIterator[MirrorLag]:
    own = Cluster(mesh.settings(target), target)
    sources = {
        other: Cluster(mesh.settings(other, of=target), other)
        for other in mesh.idcs
        if other != target
    }
    lag = MirrorLag(own, sources, target, SystemClock())
    try:
        yield lag
    finally:
        for one in (own, *sources.values()):
            await one.close()


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> float:
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() < began + within_s
        await asyncio.sleep(0.1)
    return time.monotonic() - began


class Faults:
    """Each under a stream of records, after which all must have come through."""

    def __init__(self, mesh: Mesh, target: str, stream: Stream, figures: Figures) -> None:
        self._mesh, self._target, self._stream, self._figures = mesh, target, stream, figures
        self._source = next(idc for idc in mesh.idcs if idc != target)

    async def mirror_killed(self) -> None:
        mirror = self._mesh.mirrors[self._target]
        async with self._under("MirrorMaker killed and started"):
            await asyncio.to_thread(mirror.kill)
            await asyncio.to_thread(mirror.start)

    async def source_restarted(self) -> None:
        async with self._under("source's broker killed and started"):
            await self._restart(self._source, 0)

    async def target_away(self, seconds: float) -> None:
        async with self._under(f"target's broker away for {seconds:g} s"):
            await self._restart(self._target, seconds)

    async def link_cut(self, lag: MirrorLag) -> None:
        async with self._under("link cut for 3 s"):
            self._mesh.links.set(self._target, self._source, Mode.DROP)
            await asyncio.sleep(3)
            await lag.measure()
            self._mesh.links.set(self._target, self._source, Mode.PASS)
            assert f"{self._source}'s Kafka" in lag.figures()[self._source]["problem"]

    async def _restart(self, idc: str, away_s: float) -> None:
        await asyncio.to_thread(self._mesh.kafkas[idc].kill)
        await asyncio.sleep(away_s)
        await asyncio.to_thread(self._mesh.kafkas[idc].start)

    @contextlib.asynccontextmanager
    async def _under(self, name: str) -> AsyncIterator[None]:
        self._stream.arrivals.clear()
        sending = asyncio.create_task(self._stream.send(300, 3))
        await asyncio.sleep(1)
        yield
        await sending
        await self._stream.through()
        self._figures(f"longest stall, {name}", self._stream.stall())


async def figures_hold(lag: MirrorLag, source: str) -> None:
    """All is copied: they say so, and for each partition."""

    async def measured_whole() -> bool:
        await lag.measure()
        found = lag.figures()
        now, ages = found[source], [flow["worker_age_s"] for flow in found.values()]
        alive = all(age is not None and age <= 5 for age in ages)
        return alive and now["problem"] == "" and now["behind"] == 0

    await until(measured_whole, 20)
    assert set(lag.figures()[source]["partitions"]) == set(range(PARTITIONS))


async def test_records_arrive_once_and_in_order_whoever_is_killed(
    two: Mesh, figures: Figures
) -> None:
    mirror = two.mirrors["iad"]
    stream = Stream(two, "fra", "iad")
    await stream.create()
    await asyncio.to_thread(mirror.start)
    launched = time.monotonic()
    async with measured(two, "iad") as lag, stream.reading():
        await stream.send(100, 0.1)
        await stream.through(FIRST_S)
        figures("first record through after", f"{time.monotonic() - launched:.1f} s")
        await figures_hold(lag, "fra")
        for rate in (500, 1_000):
            stream.arrivals.clear()
            await stream.send(rate, 4)
            await stream.through()
            figures(f"lag at {rate} records/s", stream.lag())
        figures("memory of the MirrorMaker", f"{mirror.memory_mb()} MB")
        faults = Faults(two, "iad", stream, figures)
        await faults.mirror_killed()
        await faults.link_cut(lag)
        await faults.source_restarted()
        await figures_hold(lag, "fra")
    assert mirror.alive and not gave_up(mirror.log)


@pytest.mark.nightly
async def test_three_idcs_mirror_each_other_through_faults(three: Mesh, figures: Figures) -> None:
    stream = Stream(three, "fra", "iad")
    for source in three.idcs:
        await Stream(three, source, "iad").create()
    for mirror in three.mirrors.values():
        await asyncio.to_thread(mirror.start)
    async with contextlib.AsyncExitStack() as stack:
        lag = await stack.enter_async_context(measured(three, "iad"))
        await stack.enter_async_context(stream.reading())
        await stream.send(100, 0.1)
        await stream.through(2 * FIRST_S)

        async def heartbeats_come() -> bool:
            await lag.measure()
            ages = [one["heartbeat_age_s"] for one in lag.figures().values()]
            return all(age is not None and age < 10 for age in ages)

        figures("heartbeats of all others after", f"{await until(heartbeats_come, 60):.1f} s")
        stream.arrivals.clear()
        await stream.send(1_000, 30)
        await stream.through()
        figures("lag at 1,000 records/s, six flows", stream.lag())

        again = Stream(three, "fra", "iad", incarnation=2)
        began = time.monotonic()
        await again.create()
        async with again.reading():
            await again.send(100, 0.1)
            await again.through()
            figures("a new incarnation's log after", f"{time.monotonic() - began:.1f} s")

        faults = Faults(three, "iad", stream, figures)
        for _ in range(2):
            await faults.mirror_killed()
            await faults.source_restarted()
            await faults.target_away(12)  # longer than its transactions may last
            await faults.link_cut(lag)
        await figures_hold(lag, "fra")
    own = Cluster(three.settings("iad"), "iad")
    copies = {topic for topic in await own.look(None) if "im.log" in topic}
    await own.close()
    # No copies of copies.
    assert copies == {"im.log.1", "fra.im.log.1", "fra.im.log.2", "sin.im.log.1"}
    for mirror in three.mirrors.values():
        assert mirror.alive and not gave_up(mirror.log)
