"""What one batch of a mirrored log may hold: a message has a limit, and partitions are many."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from imcore.proto import oplog_pb2 as oplog
from imcore.proto import peer_pb2 as peer
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.engines.disk import RealDisk
from services.engines.log_store import SegmentLogStore
from services.mirror.progress import Progress
from services.mirror.serve import LogsService
from services.ports import Log, Record

FRA = Origin("fra", 1)
PARTITIONS = 24
TICKS = 800  # of each partition: small records, of which most of the bytes are not payload
BATCH_BYTES_MAX = 300 * 1024


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SegmentLogStore]:
    store = await SegmentLogStore.open(
        str(tmp_path / "log"), PARTITIONS, RealDisk(), random.Random(1)
    )
    yield store
    await store.close()


async def append(log: Log, partition: int, payloads: list[bytes]) -> None:
    done: asyncio.Future[Sequence[Record] | Exception] = asyncio.get_running_loop().create_future()
    log.append(partition, 1, payloads, done.set_result)
    assert not isinstance(await done, Exception)


async def test_a_long_backlog_of_many_partitions_comes_in_small_batches_and_in_turn(
    store: SegmentLogStore,
) -> None:
    log = await store.open_own(FRA)
    tick = oplog.Op(hlc=1)
    tick.tick.SetInParent()
    for partition in range(PARTITIONS):
        await append(log, partition, [tick.SerializeToString()] * TICKS)
    service = LogsService(
        "fra",
        store,
        PARTITIONS,
        Progress(lambda *told: None, PARTITIONS),
        lambda origin: {},
        SystemClock(),
    )
    taken = dict.fromkeys(range(PARTITIONS), 0)
    batches: list[peer.TailBatch] = []
    stream = service._batches(log, {})
    async with asyncio.timeout(10):
        while sum(taken.values()) < PARTITIONS * TICKS:
            batch = await anext(stream)
            batches.append(batch)
            for record in batch.records:
                taken[record.partition] += 1
            if len(batches) == 2:
                # The log goes on growing where the reader had caught up already.
                await append(log, 0, [tick.SerializeToString()] * TICKS)
    await stream.aclose()
    assert max(batch.ByteSize() for batch in batches) <= BATCH_BYTES_MAX
    seen = {record.partition for batch in batches[:8] for record in batch.records}
    assert seen == set(range(PARTITIONS))


async def test_a_peer_that_names_partitions_of_another_region_costs_nobody_anything() -> None:
    told: list[tuple[str, Origin, int, int]] = []
    progress = Progress(lambda *each: told.append(each), PARTITIONS)
    ends = [peer.PartitionEnd(partition=number, lsn=7) for number in (0, PARTITIONS, 2**32 - 1)]
    progress.report("iad", FRA, ends, ends)
    progress.announce(FRA, PARTITIONS, 9)
    assert told == [("iad", FRA, 0, 7)]
    assert progress.held["iad", FRA] == progress.applied["iad", FRA] == {0: 7}
    assert progress.announced[FRA] == {0: 7}
