"""A copy on a disk that takes longer for an fsync than its source for a batch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace as Made
from typing import Any, cast

import pytest

from imcore.proto import peer_pb2 as peer
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.engines.records import pack
from services.mirror.follow import Follower
from services.mirror.incoming import BYTES_MAX, Incoming
from services.mirror.progress import Progress
from services.ports import Record

FRA = Origin("fra", 1)
FSYNC_S = 0.05
BATCHES = 100


class SlowCopy:
    """Each append costs one fsync, however much is in it."""

    def __init__(self) -> None:
        self.appends: list[int] = []
        self.lsn = 0

    def end(self, partition: int) -> Any:
        return Made(lsn=self.lsn, chain=b"")

    async def append_copy(self, records: Sequence[Record]) -> None:
        await asyncio.sleep(FSYNC_S)
        assert [record.lsn for record in records] == [
            *range(self.lsn + 1, self.lsn + 1 + len(records))
        ]
        self.appends.append(len(records))
        self.lsn += len(records)


class Stream:
    """A batch of one record each 2 ms, and then silence."""

    def __init__(self) -> None:
        self.sent = 0

    async def read(self) -> peer.TailBatch:
        if self.sent == BATCHES:
            await asyncio.sleep(60)
        await asyncio.sleep(0.002)
        self.sent += 1
        batch = peer.TailBatch()
        record = Record(0, 1, self.sent, b"c" * 16, b"x")
        batch.records.add(partition=0, record=pack(record))
        return batch

    def cancel(self) -> None:
        pass


async def test_what_comes_during_an_fsync_shares_the_next_one() -> None:
    copy, stream = SlowCopy(), Stream()
    follower = Follower(
        "fra", "iad", 1, cast(Any, Made(held=dict, filled_from_outside=False)), {},
        Progress(lambda *told: None, 1), lambda origin: {}, lambda origin, partition: None,
        SystemClock(),
    )  # fmt: skip
    stub = cast(Any, Made(Tail=lambda requests: stream))
    batches = follower._batches(stub, "fra", FRA, cast(Any, copy))
    async with asyncio.timeout(10 * BATCHES * FSYNC_S):
        while copy.lsn < BATCHES:
            await anext(batches)
    await batches.aclose()
    assert len(copy.appends) < BATCHES / 4


async def test_a_source_that_sends_more_than_is_taken_has_to_wait() -> None:
    read = 0

    async def endless() -> peer.TailBatch:
        nonlocal read
        await asyncio.sleep(0)
        read += 1
        batch = peer.TailBatch()
        batch.records.add(partition=0, record=bytes(1 << 20))
        return batch

    incoming = Incoming(endless)
    await asyncio.sleep(0.05)
    assert read == -(-BYTES_MAX // (1 << 20))
    assert len((await incoming.next()).records) == read
    incoming.close()


async def test_what_ended_the_stream_is_told_after_what_came_before() -> None:
    left = [peer.TailBatch(truncated_below=True)]

    async def ends() -> peer.TailBatch:
        if not left:
            raise TimeoutError("over")
        return left.pop()

    incoming = Incoming(ends)
    await asyncio.sleep(0.01)
    assert (await incoming.next()).truncated_below
    with pytest.raises(TimeoutError, match="over"):
        await incoming.next()
