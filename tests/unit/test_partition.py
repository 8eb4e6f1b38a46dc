"""One partition on a real log and a real KV: failed appends, repairs, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.attest import RegionKeys, content_hash
from imcore.errors import ImError
from imcore.hlc import Hlc
from imcore.proto import oplog_pb2 as oplog
from imcore.runtime import SystemClock
from imcore.words import Attested, ClientKey, Lane, Origin, Place
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.im.partition import Outcome, Partition
from services.im.sequencer import Accepted, Submission

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
KEYS = RegionKeys({1: b"k" * 32}, 1)
CONVERSATION = "d:ann:bob"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = RealDisk()  # of the log
        self.partition: Partition

    async def start(self) -> None:
        self.store = await SegmentLogStore.open(
            str(self.folder / "log"), 1, self.disk, random.Random(1)
        )
        self.kv = await LmdbKv.open(str(self.folder / "kv"), RealDisk())
        log = await self.store.open_own(FRA)
        self.partition = Partition(
            0, FRA, log, self.kv, self.store, Hlc(), SystemClock(), KEYS, 1, 2,
            lambda number, origin, effects: None, 500,
        )  # fmt: skip
        await self.partition.open(b"sequencer")
        self.applying = asyncio.ensure_future(self.partition.applier.run())

    async def stop(self) -> None:
        self.applying.cancel()
        await asyncio.gather(self.applying, return_exceptions=True)
        await self.kv.close()
        await self.store.close()

    async def send(self, cid: int, content: bytes = b"hello") -> Outcome:
        key = ClientKey("ann", "phone", "o1", CONVERSATION, cid)
        submission = Submission(key, content, content_hash(content), 1, None, (), 0, 0)
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        while not self.partition.submit(submission, answer.set_result):
            await self.partition.prepare(Lane(*key[:4]), 1)
        return await answer

    async def seqs(self) -> list[int]:
        own = self.store.own()
        assert own is not None
        records = await own.read(0, 1, 1 << 30)
        ops = [oplog.Op.FromString(record.payload) for record in records]
        return [op.seq for op in ops if op.conversation == CONVERSATION and op.seq]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.start()
    yield bench
    await bench.stop()


async def until_writable(bench: Bench) -> None:
    async with asyncio.timeout(5):
        while bench.partition.alarm is not None:
            await asyncio.sleep(0.005)


def a_claim() -> Attested:
    key = ClientKey("bob", "phone", "o1", CONVERSATION, 1)
    return KEYS.attest(key, b"h", IAD, 1, Place(1, IAD, 1))


async def test_no_seq_is_lost_to_what_is_asked_while_a_log_is_repaired(bench: Bench) -> None:
    """A seq that no record carries would be a hole that no pull can ever fill (rule 9)."""
    assert isinstance(await bench.send(1), Accepted)
    bench.disk.faults.full = True
    assert isinstance(await bench.send(2), ImError)
    bench.disk.faults.full = False
    bench.disk.faults.fsync_delay_ms = 100  # the marker of the new epoch is long on its way

    async def ask_all_the_time() -> None:
        original = oplog.Op(hlc=1, conversation=CONVERSATION, seq=9)
        original.membership.changes.add(uid="ann", member=True)
        while bench.partition.alarm is not None:
            # As groups do; then what a device claims, and what is published again.
            with contextlib.suppress(ImError):
                sequencer = bench.partition.sequencer
                await bench.partition.append(
                    sequencer.membership(CONVERSATION, [("ann", True)], "ann", 1, 1, 0)
                )
            with contextlib.suppress(ImError):
                await bench.partition.claim([a_claim()], 0)
            with contextlib.suppress(ImError):
                await bench.partition.republish(original, None)
            await asyncio.sleep(0.005)

    await ask_all_the_time()
    bench.disk.faults.fsync_delay_ms = 0
    assert isinstance(await bench.send(2), Accepted)
    seqs = await bench.seqs()
    assert seqs == list(range(1, len(seqs) + 1))


async def test_a_repair_that_fails_in_whatever_way_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, failures = bench.partition.applier.drain, [LookupError("a gap"), ValueError("a bug")]

    async def failing() -> None:
        if failures:
            raise failures.pop(0)
        await drain()

    bench.disk.faults.full = True
    assert isinstance(await bench.send(1), ImError)
    bench.applying.cancel()
    await asyncio.gather(bench.applying, return_exceptions=True)
    monkeypatch.setattr(bench.partition.applier, "drain", failing)
    bench.disk.faults.full = False
    said = set()
    async with asyncio.timeout(5):
        while (alarm := bench.partition.alarm) is not None:
            said.add(alarm.rpartition(": ")[2])
            await asyncio.sleep(0.01)
    assert {"a gap", "a bug"} <= said
    assert isinstance(await bench.send(1), Accepted)
