"""A Kv that changes its store while it serves (docs/engines.md, "From one KV to another").

Copy: from the first moment on, every batch that the old store takes is also noted in a journal;
then a snapshot of the old store is restored into the new one. Catch up: the journal is played into
the new store. It may begin with batches that the snapshot has already: what a batch writes is
absolute, so a suffix of them that begins too early ends in the same state. Switch: writers wait,
the rest is played, ``before_switch`` notes durably which store counts, and the new one takes over.
Until then the old store is whole and in charge, whatever fails; a crash costs the move only.

The new store is the old one row by row, checkpoints and timelines included, so nobody notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from imcore.errors import Code, ImError, OutcomeUnknown, Refused, StaleWriter, Unavailable
from services.ports import BATCH_BYTES_MAX, Batch, Kv

log = logging.getLogger("im.kv")

_SHORT = 256  # batches left: few enough to let the writers wait for them
_SWITCH_S = 2.0  # as long as the writers may wait
_PASS_BYTES = 8 << 20
_RETRIES_S = (0.05, 0.1, 0.5, 1.0, 2.0)
_GRACE_S = 2.0  # reads of the old store that are under way
_HEAD = struct.Struct(">IIII")  # partition, length of the checkpoint, number of puts, of deletes
_PAIR = struct.Struct(">HI")
_LENGTH = struct.Struct(">I")


@dataclass(slots=True)
class Move:
    """What there is to tell of a move."""

    phase: str = "copy"  # then "catch up", "switch", "done"
    batches: int = 0  # taken since it began
    played: int = 0  # of them, in the new store


class MovingKv:
    """Kv of services.ports. Epochs are its own: they go on across a switch."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._epochs: dict[int, tuple[int, int]] = {}  # the one that was given out, the store's
        self._opening = asyncio.Lock()
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)  # by partition
        self._journal: Journal | None = None
        self.move: Move | None = None  # under way
        self.read: Callable[[bytes], None] | None = None  # told each key that is read

    @property
    def rolled_back(self) -> bool:
        return self._kv.rolled_back

    async def get(self, key: bytes) -> bytes | None:
        if self.read is not None:
            self.read(key)
        return await self._kv.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if self.read is not None:
            for key in keys:
                self.read(key)
        return await self._kv.get_many(keys)

    async def scan(
        self, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        if self.read is not None:
            self.read(start)
        return await self._kv.scan(start, end, limit, reverse)

    async def open_partition(self, partition: int) -> tuple[int, bytes | None]:
        async with self._opening, self._turns[partition]:
            inner, checkpoint = await self._kv.open_partition(partition)
            outer = max(inner, self._epochs.get(partition, (0, 0))[0] + 1)
            self._epochs[partition] = outer, inner
            return outer, checkpoint

    def _inner(self, partition: int, epoch: int) -> int:
        outer, inner = self._epochs.get(partition, (0, 0))
        if outer != epoch:
            raise StaleWriter(f"applier epoch {epoch} of partition {partition}: it is at {outer}")
        return inner

    async def commit(self, batch: Batch) -> None:
        async with self._turns[batch.partition]:
            epoch = self._inner(batch.partition, batch.applier_epoch)
            try:
                await self._kv.commit(_with_epoch(batch, epoch))
            except (StaleWriter, Unavailable, ValueError):
                raise  # surely not done
            except BaseException:  # cancelled, too: it may have been written, or still be
                self._abort("a write of the old store has an unknown outcome")
                raise
            if self._journal is not None:
                self._journal.add(batch)

    async def clear_partition(self, partition: int, applier_epoch: int, checkpoint: bytes) -> None:
        async with self._turns[partition]:
            self._abort(f"partition {partition} is folded again")
            inner = self._inner(partition, applier_epoch)
            await self._kv.clear_partition(partition, inner, checkpoint)

    async def load_partition(
        self, snapshot: Path, partition: int, applier_epoch: int, checkpoint: bytes
    ) -> None:
        async with self._turns[partition]:
            self._abort(f"partition {partition} is folded again")
            inner = self._inner(partition, applier_epoch)
            await self._kv.load_partition(snapshot, partition, inner, checkpoint)

    async def sync(self) -> None:
        await self._kv.sync()

    async def snapshot(self, folder: Path) -> None:
        await self._kv.snapshot(folder)

    async def restore(self, snapshot: Path) -> None:
        self._abort("the KV is replaced by a snapshot")
        await self._kv.restore(snapshot)

    async def close(self) -> None:
        self._abort("the KV is closed")
        await self._kv.close()

    # ------------------------------------------------------------------------------- the move

    async def move_to(
        self, target: Kv, folder: Path, before_switch: Callable[[], Awaitable[None]]
    ) -> None:
        """Go over to ``target``, which is this one's from then on; the old store is closed.
        ``folder`` (which must not exist) holds a snapshot and the journal meanwhile. Raises Refused
        when what went on here made the move void, or what a store raised: then ``target`` is the
        caller's to close, and nothing has changed."""
        if self.move is not None:
            raise Refused(Code.FORBIDDEN, "a move of this KV is under way")
        self.move = move = Move()
        try:
            journal = self._journal = await asyncio.to_thread(Journal, folder)
            await self._kv.snapshot(folder / "snapshot")
            await target.restore(folder / "snapshot")
            move.phase = "catch up"
            player = _Player(journal, target, move)
            while not await self._switched(player, move, before_switch):
                pass
        finally:
            if self._journal is not None:
                self._journal.close()
            self._journal = self.move = None
        move.phase = "done"

    async def _switched(
        self, player: _Player, move: Move, before_switch: Callable[[], Awaitable[None]]
    ) -> bool:
        while await player.play() > _SHORT:
            pass
        move.phase = "switch"
        old = self._kv
        async with AsyncExitStack() as stack:
            # Outside the time-out: a write under way takes what it takes.
            for turn in (self._opening, *self._turns.values()):
                await stack.enter_async_context(turn)
            try:
                async with asyncio.timeout(_SWITCH_S):
                    while await player.play():
                        pass
                    for partition in self._epochs:
                        await player.open(partition)
                    await player.target.sync()
            except TimeoutError:
                move.phase = "catch up"
                return False
            player.check()
            # From the note on there is no way back, not even for whoever cancels the move.
            await _to_its_end(self._take_over(player, before_switch))
        await _to_its_end(_let_go(old))
        return True

    async def _take_over(
        self, player: _Player, before_switch: Callable[[], Awaitable[None]]
    ) -> None:
        await before_switch()
        self._kv = player.target
        self._epochs = {
            partition: (outer, player.epochs[partition])
            for partition, (outer, _) in self._epochs.items()
        }

    def _abort(self, reason: str) -> None:
        if self._journal is not None and self._journal.void is None:
            self._journal.void = reason
            log.warning("the move of the KV is void: %s", reason)


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Whoever cancels waits for it, and it counts."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    task.result()


async def _let_go(old: Kv) -> None:
    """The switch is done, whatever becomes of the old store."""
    await asyncio.sleep(_GRACE_S)
    try:
        await old.close()
    except (ImError, OSError) as error:
        log.warning("the KV's old store could not be closed: %s", error)


class _Player:
    """Plays a journal into the new store."""

    def __init__(self, journal: Journal, target: Kv, move: Move) -> None:
        self._journal = journal
        self._move = move
        self.target = target
        self.epochs: dict[int, int] = {}

    def check(self) -> None:
        """Raises Refused when the journal does not tell the whole story any more."""
        if self._journal.void is not None:
            raise Refused(
                Code.FORBIDDEN, f"the move is void, because {self._journal.void}; start it again"
            )

    async def open(self, partition: int) -> None:
        if partition not in self.epochs:
            self.epochs[partition], _ = await self.target.open_partition(partition)

    async def play(self) -> int:
        """One pass; how many batches are left then. Batches of one partition become one, or a
        store that takes milliseconds for each would never catch up."""
        self.check()
        count, batches = self._journal.next(_PASS_BYTES)
        await asyncio.gather(*(self._commit(batch) for batch in batches))
        self._journal.advance()
        self._move.played += count
        self._move.batches = self._journal.added
        return self._move.batches - self._move.played

    async def _commit(self, batch: Batch) -> None:
        """Again when it is not known whether it was done: it does the same twice, and a late one is
        of an older epoch then."""
        for pause_s in (*_RETRIES_S, None):
            try:
                await self.open(batch.partition)
                await self.target.commit(_with_epoch(batch, self.epochs[batch.partition]))
                return
            except (Unavailable, OutcomeUnknown):
                self.epochs.pop(batch.partition, None)
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
            except asyncio.CancelledError:
                self.epochs.pop(batch.partition, None)
                raise


def _with_epoch(batch: Batch, epoch: int) -> Batch:
    return batch if batch.applier_epoch == epoch else replace(batch, applier_epoch=epoch)


# ---------------------------------------------------------------------------------- journal


class Journal:
    """Batches in a file, in the order in which they were taken. Not synced: it does not outlive the
    process."""

    def __init__(self, folder: Path) -> None:
        """In a new folder."""
        folder.mkdir(parents=True)
        self._writer: BinaryIO = (folder / "journal").open("xb", buffering=0)
        self._reader: BinaryIO = (folder / "journal").open("rb")
        self._played_to = self._next = 0
        self.added = 0
        self.void: str | None = None  # why it is of no use any more

    def add(self, batch: Batch) -> None:
        """A write that fails makes the journal void; the batch has been taken anyway."""
        data = _dump(batch)
        try:
            written = self._writer.write(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            self.void = f"its journal cannot be written ({error.strerror})"
            return
        if written != _LENGTH.size + len(data):
            self.void = "its journal cannot be written whole"
        self.added += 1

    def next(self, limit_bytes: int) -> tuple[int, list[Batch]]:
        """How many batches come next, up to about that many bytes, and one for each partition that
        does what they do, as large as a batch may be. The same again until ``advance``."""
        count = size = 0
        merged: dict[int, Batch] = {}
        sizes: defaultdict[int, int] = defaultdict(int)
        self._reader.seek(self._played_to)
        while size < limit_bytes:
            head = self._reader.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            data = self._reader.read(length)
            if not length or len(data) < length:
                break
            batch = _load(data)
            sizes[batch.partition] += batch.size
            if batch.partition in merged and sizes[batch.partition] > BATCH_BYTES_MAX:
                break
            count, size = count + 1, size + _LENGTH.size + length
            _merge(merged, batch)
        self._next = self._played_to + size
        return count, list(merged.values())

    def advance(self) -> None:
        """What ``next`` gave is in the new store."""
        self._played_to = self._next

    def close(self) -> None:
        self._writer.close()
        self._reader.close()


def _merge(merged: dict[int, Batch], batch: Batch) -> None:
    before = merged.setdefault(batch.partition, batch)
    if before is batch:
        return
    before.checkpoint = batch.checkpoint
    before.deletes -= batch.puts.keys()
    before.puts.update(batch.puts)
    for key in batch.deletes:
        before.puts.pop(key, None)
    before.deletes |= batch.deletes


def _dump(batch: Batch) -> bytes:
    parts = [
        _HEAD.pack(batch.partition, len(batch.checkpoint), len(batch.puts), len(batch.deletes)),
        batch.checkpoint,
    ]
    for key, value in batch.puts.items():
        parts += [_PAIR.pack(len(key), len(value)), key, value]
    for key in batch.deletes:
        parts += [_PAIR.pack(len(key), 0), key]
    return b"".join(parts)


def _load(data: bytes) -> Batch:
    source = BytesIO(data)
    partition, length, puts, deletes = _HEAD.unpack(source.read(_HEAD.size))
    batch = Batch(partition, 0, source.read(length))
    for number in range(puts + deletes):
        key_length, value_length = _PAIR.unpack(source.read(_PAIR.size))
        key, value = source.read(key_length), source.read(value_length)
        if number < puts:
            batch.puts[key] = value
        else:
            batch.deletes.add(key)
    return batch
