"""A copy that something else fills may be ahead of what its origin says, for a moment."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imcore.proto import peer_pb2 as peer
from imcore.runtime import ManualClock
from imcore.words import Origin
from services.engines.disk import RealDisk
from services.engines.log_store import SegmentLogStore
from services.engines.records import record_after
from services.mirror.follow import Follower
from services.mirror.progress import Progress
from services.ports import Record

FRA = Origin("fra", 1)


@pytest.mark.parametrize("outside", [False, True])
async def test_an_origin_that_ends_below_its_copy_is_an_alarm_when_it_stays_so(
    outside: bool, tmp_path: Path
) -> None:
    store = await SegmentLogStore.open(str(tmp_path), 1, RealDisk(), random.Random(1))
    store.filled_from_outside = outside
    clock = ManualClock()
    follower = Follower(
        "fra", "iad", 1, store, {}, Progress(lambda *told: None, 1), lambda origin: {},
        lambda origin, partition: None, clock, source="fra",
    )  # fmt: skip
    copy = await store.open_copy(FRA)

    async def grow(count: int) -> None:
        records: list[Record] = []
        end = copy.end(0)
        for _ in range(count):
            records.append(record_after(end, 0, 1, b"x"))
            end = end._replace(lsn=records[-1].lsn, chain=records[-1].chain, epoch=1)
        await copy.append_copy(records)

    async def hear(end: int) -> None:
        batch = peer.TailBatch(ends=[peer.PartitionEnd(partition=0, lsn=end)])
        await follower.take("fra", copy, FRA, batch)

    for end in range(0, 60, 2):  # under load, an end behind it at every look
        await grow(2)
        clock.advance(1.0)
        await hear(end)
        assert (follower.alarm is None) == outside
    for _ in range(7):
        clock.advance(1.0)
        await hear(58)
    assert follower.alarm is not None and "ends at 58 at its origin, below the 60" in follower.alarm
    await store.close()
