"""A KV that goes over to another store while batches come in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore.errors import OutcomeUnknown, Refused, StaleWriter, Unavailable
from services.engines import moving_kv
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.moving_kv import Journal, MovingKv
from services.ports import BATCH_BYTES_MAX, Batch, Kv

PARTITIONS = 3


async def nothing() -> None: ...


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads under way are given 2 s after a switch, an unsure store 3.65 s in all: here nothing
    takes that long, and the waits themselves would be half of this file's time."""
    monkeypatch.setattr(moving_kv, "_GRACE_S", 0.05)
    monkeypatch.setattr(moving_kv, "_RETRIES_S", tuple(s / 20 for s in moving_kv._RETRIES_S))


@pytest.fixture
async def old(tmp_path: Path) -> AsyncIterator[LmdbKv]:
    kv = await LmdbKv.open(str(tmp_path / "old"), RealDisk())
    yield kv
    await kv.close()


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[LmdbKv]:
    kv = await LmdbKv.open(str(tmp_path / "new"), RealDisk())
    yield kv
    await kv.close()


class Writer:
    """The appliers: one batch after the other in each partition, and what must be there then."""

    def __init__(self, kv: Kv, seed: int) -> None:
        self.kv = kv
        self.rng = random.Random(seed)
        self.rows: dict[bytes, bytes] = {}
        self.epochs: dict[int, int] = {}
        self.last: dict[int, bytes] = {}
        self.longest_s = 0.0

    async def open(self) -> None:
        for partition in range(PARTITIONS):
            self.epochs[partition], _ = await self.kv.open_partition(partition)
            await self.batch(partition)

    async def batch(self, partition: int) -> None:
        batch = Batch(partition, self.epochs[partition], self.rng.randbytes(8))
        for _ in range(self.rng.randrange(1, 12)):
            key = partition.to_bytes(2, "big") + b"%03d" % self.rng.randrange(300)
            if self.rng.random() < 0.3:
                batch.deletes.add(key)
                batch.puts.pop(key, None)
            else:
                batch.puts[key] = self.rng.randbytes(self.rng.randrange(40))
                batch.deletes.discard(key)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.kv.commit(batch)
        self.longest_s = max(self.longest_s, loop.time() - began)
        self.rows.update(batch.puts)
        for key in batch.deletes:
            self.rows.pop(key, None)
        self.last[partition] = batch.checkpoint

    async def run(self) -> None:
        while True:
            for partition in range(PARTITIONS):
                await self.batch(partition)
            await asyncio.sleep(self.rng.choice([0, 0, 0.001]))

    async def check(self, kv: Kv) -> None:
        found = await kv.scan(b"\0", b"\xff", 10_000)
        assert dict(found) == self.rows
        for partition in range(PARTITIONS):
            assert (await kv.open_partition(partition))[1] == self.last[partition]


@pytest.mark.parametrize("seed", range(4))
async def test_the_new_store_has_every_batch_and_writers_hardly_wait(
    seed: int, old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    kv = MovingKv(old)
    writer = Writer(kv, seed)
    await writer.open()
    writing = asyncio.ensure_future(writer.run())
    await asyncio.sleep(0.05)
    await kv.move_to(target, tmp_path / "move", nothing)
    await asyncio.sleep(0.05)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await writer.check(kv)
    await writer.check(target)
    with pytest.raises(Unavailable):
        await old.get(b"\0\0")
    assert writer.longest_s < 5.0


async def test_epochs_go_on_and_an_applier_of_before_is_fenced_off(
    old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    for _ in range(5):  # the old store's epochs are far above those of the new one
        await old.open_partition(0)
    kv = MovingKv(old)
    stale, _ = await kv.open_partition(0)
    epoch, _ = await kv.open_partition(0)
    await kv.move_to(target, tmp_path / "move", nothing)
    await kv.commit(Batch(0, epoch, b"new", {b"\0\0a": b"1"}))
    with pytest.raises(StaleWriter):
        await kv.commit(Batch(0, stale, b"late", {b"\0\0a": b"2"}))
    assert (await kv.open_partition(0))[0] > epoch
    with pytest.raises(StaleWriter):
        await kv.commit(Batch(0, epoch, b"late", {b"\0\0a": b"3"}))
    assert await target.get(b"\0\0a") == b"1"


async def test_a_partition_that_is_folded_again_makes_the_move_void(
    old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    kv = MovingKv(old)
    writer = Writer(kv, 1)
    await writer.open()

    async def fold_again() -> None:
        while kv.move is None or kv.move.phase == "copy":
            await writer.batch(0)
            await asyncio.sleep(0)
        await kv.clear_partition(1, writer.epochs[1], b"")

    target_kv = Slow(target)
    folding = asyncio.ensure_future(fold_again())
    with pytest.raises(Refused, match="partition 1 is folded again"):
        await kv.move_to(target_kv, tmp_path / "move", nothing)
    await folding
    await kv.commit(Batch(0, writer.epochs[0], b"goes on", {b"\0\0a": b"1"}))
    assert await old.get(b"\0\0a") == b"1"
    assert kv.move is None


async def test_a_write_that_is_cancelled_makes_the_move_void(
    old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    """Whether it was done nobody knows, and the journal has not got it."""
    begun = asyncio.Event()

    class Held(Slow):
        async def commit(self, batch: Batch) -> None:
            await super().commit(batch)
            if batch.checkpoint == b"held":
                begun.set()
                await asyncio.Event().wait()

    kv = MovingKv(Held(old))
    epoch, _ = await kv.open_partition(0)
    copied = asyncio.Event()

    class Waits(Slow):
        async def restore(self, snapshot: Path) -> None:
            await super().restore(snapshot)
            await copied.wait()

    moving = asyncio.ensure_future(kv.move_to(Waits(target), tmp_path / "move", nothing))
    await asyncio.sleep(0.05)
    writing = asyncio.ensure_future(kv.commit(Batch(0, epoch, b"held", {b"\0\0a": b"1"})))
    await begun.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    copied.set()
    with pytest.raises(Refused, match="a write of the old store has an unknown outcome"):
        await moving
    assert await old.get(b"\0\0a") == b"1"


class Slow(MovingKv):
    """A store that takes its time for each batch, and is not always sure."""

    def __init__(self, kv: Kv, unknown: float = 0.0, broken: bool = False) -> None:
        super().__init__(kv)
        self.rng = random.Random(7)
        self.unknown = unknown
        self.broken = broken

    async def commit(self, batch: Batch) -> None:
        await asyncio.sleep(0.005)
        if self.broken:
            raise Unavailable("the new store is away")
        if self.rng.random() < self.unknown:
            if self.rng.random() < 0.5:
                await super().commit(batch)
            raise OutcomeUnknown("no answer")
        await super().commit(batch)


async def test_a_slow_and_unsure_store_catches_up(
    old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    kv = MovingKv(old)
    writer = Writer(kv, 3)
    await writer.open()
    writing = asyncio.ensure_future(writer.run())
    slow = Slow(target, unknown=0.1)
    await kv.move_to(slow, tmp_path / "move", nothing)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await writer.check(target)


@pytest.mark.parametrize("where", ["the new store", "the note"])
async def test_what_fails_before_the_switch_leaves_the_old_store_in_charge(
    where: str, old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    kv = MovingKv(old)
    writer = Writer(kv, 4)
    await writer.open()

    async def note() -> None:
        raise OutcomeUnknown("the note cannot be written")

    writing = asyncio.ensure_future(writer.run())
    slow = Slow(target, broken=where == "the new store")
    with pytest.raises((Unavailable, OutcomeUnknown)):
        await kv.move_to(slow, tmp_path / "move", note)
    await asyncio.sleep(0.02)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await writer.check(old)


async def test_a_move_that_is_cancelled_while_it_takes_over_is_done(
    old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    kv = MovingKv(old)
    writer = Writer(kv, 5)
    await writer.open()
    noting, written = asyncio.Event(), False

    async def note() -> None:
        nonlocal written
        noting.set()
        await asyncio.sleep(0.05)
        written = True

    moving = asyncio.ensure_future(kv.move_to(target, tmp_path / "move", note))
    await noting.wait()
    moving.cancel()
    await asyncio.gather(moving, return_exceptions=True)
    assert written
    await writer.batch(0)
    await writer.check(target)


async def test_a_move_that_is_cancelled_when_it_has_taken_over_is_done_and_closes_the_old_store(
    old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    kv = MovingKv(old)
    writer = Writer(kv, 6)
    await writer.open()
    moving = asyncio.ensure_future(kv.move_to(target, tmp_path / "move", nothing))
    while kv._kv is old or kv._opening.locked():  # noqa: ASYNC110  # until writers go on
        await asyncio.sleep(0)
    moving.cancel()
    await moving
    with pytest.raises(Unavailable):
        await old.get(b"\0\0")
    await writer.batch(0)
    await writer.check(target)


async def test_an_old_store_that_cannot_be_closed_does_not_undo_the_move(
    old: LmdbKv, target: LmdbKv, tmp_path: Path
) -> None:
    class Stuck(Slow):
        async def close(self) -> None:
            raise Unavailable("it does not answer")

    kv = MovingKv(Stuck(old))
    writer = Writer(kv, 7)
    await writer.open()
    await kv.move_to(target, tmp_path / "move", nothing)
    await writer.check(target)


def test_a_journal_makes_no_batch_larger_than_a_store_takes(tmp_path: Path) -> None:
    """Merged without a bound they were 8 MiB, which TiKV's client writes and cannot read back."""
    journal = Journal(tmp_path / "journal")
    value, count = bytes(60_000), 100
    for number in range(count):
        journal.add(Batch(number % 2, 9, b"%d" % number, {b"%03d" % number: value}))
    played, checkpoints = 0, dict[int, bytes]()
    while True:
        taken, batches = journal.next(8 << 20)
        if not taken:
            break
        assert all(batch.size <= BATCH_BYTES_MAX for batch in batches)
        checkpoints |= {batch.partition: batch.checkpoint for batch in batches}
        played += taken
        journal.advance()
    assert (played, checkpoints) == (count, {0: b"98", 1: b"99"})
    journal.add(Batch(1, 9, b"large", {b"a": bytes(2 * BATCH_BYTES_MAX)}))
    assert journal.next(8 << 20)[0] == 1  # one that cannot be less
    journal.close()


def test_a_journal_gives_the_same_until_it_is_told_to_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(Batch(1, 9, b"one", {b"a": b"1", b"b": b""}, {b"c"}))
    journal.add(Batch(1, 9, b"two", {b"c": b"3"}, {b"a"}))
    journal.add(Batch(2, 9, b"three"))
    expected = (3, [Batch(1, 0, b"two", {b"b": b"", b"c": b"3"}, {b"a"}), Batch(2, 0, b"three")])
    assert journal.next(1 << 20) == expected
    assert journal.next(1 << 20) == expected
    journal.advance()
    assert journal.next(1 << 20) == (0, [])
    journal.close()
