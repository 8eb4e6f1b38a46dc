"""Kv on TiKV, in its transactional mode. How rows lie: layout.py.

Why a paused applier that resumes can overwrite nothing. A batch is in one transaction (several
partitions' may share it: flights.py), which reads its partition's own row (Meta), compares the
epoch, and writes the row together with the batch. Of two
transactions that overlap in time, snapshot isolation lets the second one fail, because both write
that row; of two that do not, the later one reads the epoch that the earlier one wrote. ``commit``
holds for the whole batch or for nothing of it.

Why a write with an unknown outcome is settled by ``open_partition``. That writes Meta too. A commit
that is still under way has begun before: either it has locked Meta already, and is waited for until
it is done or its lock is old enough to be rolled back, or it finds a newer Meta and fails. Until
then no further batch is taken: it would stand on a state that may not come to be.

Reads take Meta along, at the same timestamp: so they know the current generation whoever changed
it, that the store under them is still the one that was opened, and whether the last batch is one
that has not been read back yet.

Why no batch is torn for anybody, though the client tears some: redo.py. A batch is read back before
``commit`` returns; one whose outcome was unknown when its partition is opened again; and the last
one of whoever had the store before, when the store is opened.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from imcore.errors import Damaged, OutcomeUnknown, StaleWriter, StoreReplaced, Unavailable
from services.engines import lmdb_snapshot
from services.engines.disk import Disk
from services.engines.tikv import copies, identity, redo, scans
from services.engines.tikv.client import (
    Again,
    Pair,
    Snapshot,
    TikvClient,
    TikvSettings,
    Transaction,
)
from services.engines.tikv.doubts import Doubts
from services.engines.tikv.flights import Flights
from services.engines.tikv.garbage import Garbage
from services.engines.tikv.layout import (
    PARTITION_BYTES,
    PARTITIONS_END,
    Layout,
    Meta,
    inverted,
    packed_mark,
    parse,
    parse_mark,
    partition_of,
)
from services.ports import Batch

log = logging.getLogger("im.kv")

KEY_BYTES_MAX = 511
_OPEN_S = 6.0  # twice the time for which a lock of a dead transaction keeps others out
_Written = tuple[Meta, redo.Redo]
_Landed = tuple[Meta, bool]  # whether some of it had to be written again


class TikvKv:
    """Kv of services.ports; made by ``open``. For use from one event loop.

    ``rolled_back``: TiKV itself loses nothing that was committed; this tells that the cluster was
    wiped, replaced or restored since it was opened last (identity.py), or that a partition had to
    be emptied (``_take_over``)."""

    def __init__(
        self,
        client: TikvClient,
        layout: Layout,
        life: identity.Life,
        rolled_back: bool,
        folder: Path,
        disk: Disk,
        shadowed: frozenset[bytes],
    ) -> None:
        self.rolled_back = rolled_back
        self._client = client
        self._layout = layout
        self._life = life
        self._remembered = False
        self._remembering = asyncio.Lock()
        self._folder = folder
        self._disk = disk
        self._shadowed = shadowed
        self._epochs: dict[int, int] = {}  # that this process opened, and may write under
        self._seen: dict[int, Meta] = {}  # the newest
        self._unsettled: set[int] = set()
        self._whole: dict[int, int] = {}  # the last batch that was read back here
        self._doubts = Doubts()
        self._turns: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)  # by partition
        self._copying = asyncio.Lock()
        self._flights = Flights(self._fly, client.deadline)
        self.garbage = Garbage(client, layout)

    @classmethod
    async def open(
        cls, settings: TikvSettings, folder: Path, disk: Disk, shadowed: Iterable[bytes] = ()
    ) -> TikvKv:
        """``folder``: of this node, for what tells the store's lives apart. ``shadowed``: the
        tables (third byte of a key) that are scanned down; the same ones as ever, or the partitions
        must be cleared. Raises Unavailable, OutcomeUnknown, and BadInput when the client cannot be
        had."""
        client, layout = TikvClient(settings), Layout(settings.prefix)
        try:
            last = await identity.seen_last(folder)
            life = await identity.begin(client, layout.identity)
        except BaseException:
            await client.close()
            raise
        back = last is not None and (last.id != life.id or life.opened <= last.opened)
        kv = cls(client, layout, life, back, folder, disk, frozenset(shadowed))
        try:
            await kv._take_over()
        except BaseException:
            await kv.close()
            raise
        kv.garbage.collect_versions()
        return kv

    async def _take_over(self) -> None:
        """The last batches are made whole, before anybody reads. A partition whose redo is not that
        of its last batch (one of the two was left out, and then the process died) is emptied."""

        async def all_metas(snapshot: Snapshot) -> dict[int, Meta]:
            return await copies.metas(snapshot, self._layout, 0, PARTITIONS_END - 1)

        for partition, meta in (await self._client.read(all_metas)).items():
            until = self._client.deadline(_OPEN_S)
            try:
                last = await self._redo_of(partition, meta, until)
                await self._made_whole(partition, meta, last, until)
            except StoreReplaced as error:  # this very moment: it is opened again
                raise Unavailable(str(error)) from error
            except Damaged as error:
                log.error("%s: partition %d is emptied: %s", self._client, partition, error)
                await self._emptied(partition)
                self.rolled_back = True

    async def _emptied(self, partition: int) -> None:
        keys = self._layout.meta(partition), self._layout.redo(partition)

        async def work(transaction: Transaction) -> tuple[Meta, redo.Redo]:
            found = await transaction.get_many([*keys, self._layout.mark(partition)])
            meta = parse(found.get(keys[0]))
            numbers = [meta.batch, parse_mark(found.get(self._layout.mark(partition)))]
            numbers += [redo.parse(found[keys[1]]).batch] if keys[1] in found else []
            batch = max(numbers) + 1
            meta = Meta(meta.epoch + 1, meta.spare, meta.spare + 1, None, batch)
            nothing = redo.Redo(batch, meta.generation, (self._marked(partition, batch),), ())
            nothing = nothing.beside(keys[1], nothing.packed())
            await transaction.put([(keys[0], meta.packed()), *nothing.puts])
            return meta, nothing

        until = self._client.deadline(_OPEN_S)
        await self._made_whole(partition, *await self._client.write(work, until), until)

    def _marked(self, partition: int, batch: int) -> Pair:
        return self._layout.mark(partition), packed_mark(batch)

    # --------------------------------------------------------------------------- reads

    async def get(self, key: bytes) -> bytes | None:
        return (await self.get_many([key]))[0]

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        floor = {p: self._newest(p) for p in {partition_of(key) for key in keys}}
        metas = {p: self._layout.meta(p) for p in floor}

        async def work(snapshot: Snapshot) -> list[bytes | None]:
            generations = {p: meta.generation for p, meta in floor.items()}
            while True:
                rows = [self._row(key, generations[partition_of(key)]) for key in keys]
                found = await snapshot.get_many([*metas.values(), *dict.fromkeys(rows)])
                there = {p: parse(found.get(key)) for p, key in metas.items()}
                if generations == self._checked(there, floor):
                    await self._hold(there)
                    values = [found.get(row) for row in rows]
                    return [None if value is None else value[1:] for value in values]
                generations = self._checked(there, floor)

        return await self._client.read(work)

    async def scan(self, start: bytes, end: bytes, limit: int, reverse: bool = False) -> list[Pair]:
        if limit <= 0 or start >= end:
            return []
        first, last = partition_of(start), partition_of(end)
        high = end[PARTITION_BYTES:]
        if not high:
            last -= 1  # the end is where a partition begins

        async def one(snapshot: Snapshot, partition: int, generation: int, left: int) -> list[Pair]:
            bounds = (
                start[PARTITION_BYTES:] if partition == first else b"",
                high if high and partition == partition_of(end) else None,
            )
            place = partition, generation
            if reverse:
                rows = await scans.scan_down(
                    snapshot, self._layout, place, bounds, left, self._shadowed
                )
            else:
                rows = await scans.scan(snapshot, self._layout, place, bounds, left)
            number = partition.to_bytes(PARTITION_BYTES, "big")
            return [(number + key, value) for key, value in rows]

        floor = {p: self._newest(p) for p in {first, *self._seen} if first <= p <= last}

        async def of_one(snapshot: Snapshot) -> list[Pair]:
            key, generation = self._layout.meta(first), floor[first].generation
            while True:
                found, rows = await asyncio.gather(
                    snapshot.get_many([key]), one(snapshot, first, generation, limit)
                )
                there = {first: parse(found.get(key))}
                current = self._checked(there, floor)[first]
                if current == generation:
                    await self._hold(there)
                    return rows
                generation = current

        async def of_several(snapshot: Snapshot) -> list[Pair]:
            there = await copies.metas(snapshot, self._layout, first, last)
            self._checked({p: Meta() for p in floor} | there, floor)
            rows: list[Pair] = []
            for partition, meta in sorted(there.items(), reverse=reverse):
                if len(rows) < limit:
                    rows += await one(snapshot, partition, meta.generation, limit - len(rows))
            await self._hold(there)
            return rows

        return await self._client.read(of_one if first == last else of_several)

    def _newest(self, partition: int) -> Meta:
        return self._seen.get(partition, Meta())

    def _checked(self, there: dict[int, Meta], floor: dict[int, Meta]) -> dict[int, int]:
        """The generations of what a read found, which is noted. Raises Unavailable when it lies
        below ``floor``, what was known before the read began: the store went back."""
        for partition, meta in there.items():
            if meta.version < floor.get(partition, Meta()).version:
                raise Unavailable(self._other_store(partition))
            self._note(partition, meta)
        return {partition: meta.generation for partition, meta in there.items()}

    async def _hold(self, there: dict[int, Meta]) -> None:
        """Raises Again when a batch that was seen was not whole."""
        if not await self._doubts.hold(there):
            raise Again

    def _other_store(self, partition: int) -> str:
        return (
            f"{self._client} has another state of partition {partition} than it had: it was wiped, "
            "replaced or restored under this process, which must start again"
        )

    # -------------------------------------------------------------------------- writes

    async def open_partition(self, partition: int) -> tuple[int, bytes | None]:
        meta_key, life_key = self._layout.meta(partition), self._layout.identity

        floor = self._newest(partition)

        async def work(transaction: Transaction) -> Meta:
            found = await transaction.get_many([meta_key, life_key])
            meta, life = parse(found.get(meta_key)), identity.id_of(found.get(life_key))
            if life != self._life.id or meta.version < floor.version:
                raise StoreReplaced(self._other_store(partition))
            meta = meta._replace(epoch=meta.epoch + 1)
            await transaction.put([(meta_key, meta.packed())])
            return meta

        async with self._turns[partition]:
            async with self._settling(partition):
                until = self._client.deadline(_OPEN_S)
                meta = await self._client.write(work, until)
                await self._settle_last(partition, meta, until)
            self._unsettled.discard(partition)
            self._epochs[partition] = meta.epoch
            self._note(partition, meta)
            self.garbage.drop(partition, 0, meta.generation)
            self.garbage.drop(partition, meta.generation + 1, meta.spare)
        await self._remember()
        return meta.epoch, meta.checkpoint

    async def _settle_last(self, partition: int, meta: Meta, until: float) -> None:
        """The last batch, when its outcome was unknown here, or it was not read back here."""
        if partition in self._unsettled or self._whole.get(partition) != meta.batch:
            try:
                last = await self._redo_of(partition, meta, until)
            except Damaged as error:  # to be emptied, when the store is opened again
                raise StoreReplaced(f"{self._client}: partition {partition}: {error}") from error
            try:
                await self._made_whole(partition, meta, last, until)
            except Unavailable as error:
                raise OutcomeUnknown(str(error)) from error
        self._doubts.settle(partition, True)

    async def _remember(self) -> None:
        """Not before somebody works with the state, who has then heard of ``rolled_back``."""
        async with self._remembering:  # partitions may be opened side by side
            if not self._remembered:
                await identity.remember(self._folder, self._disk, self._life)
                self._remembered = True

    async def commit(self, batch: Batch) -> None:
        _check_keys(batch.partition, [*batch.puts, *batch.deletes])
        async with self._turn(batch.partition, batch.applier_epoch):
            meta, changed = await self._flights.join(batch)
            self._doubts.settle(batch.partition, changed)
            self._note(batch.partition, meta)

    async def _fly(self, batches: Sequence[Batch]) -> dict[int, _Landed | Exception]:
        """In one transaction. One that may not be written leaves the others alone. To write, to
        read back and to write again what was left out have one deadline together: whoever opens
        the partition goes on with what it cuts short."""
        until = self._client.deadline()
        refused: dict[int, Exception] = {}

        async def work(transaction: Transaction) -> dict[int, _Written]:
            refused.clear()
            written: dict[int, _Written] = {}
            keys = {batch.partition: self._layout.meta(batch.partition) for batch in batches}
            found = await transaction.get_many(list(keys.values()))
            for batch in batches:
                there = parse(found.get(keys[batch.partition]))
                try:
                    self._check_epoch(batch.partition, there, batch.applier_epoch)
                    written[batch.partition] = self._written(batch, there)
                except (StaleWriter, Unavailable) as error:
                    refused[batch.partition] = error
            # First, so that these keys hold the primary: whoever meets locks of the batch asks
            # there.
            for partition, (meta, _) in written.items():
                self._doubts.begin(partition, meta.batch)
                await transaction.put([(keys[partition], meta.packed())])
            await transaction.put(pair for _, last in written.values() for pair in last.puts)
            await transaction.delete(key for _, last in written.values() for key in last.deletes)
            return written

        written = await self._client.write(work, until)
        try:
            whole = await self._read_back(written, until) if written else set()
        except Unavailable as error:
            raise OutcomeUnknown(str(error)) from error
        landed: dict[int, _Landed | Exception] = {**refused}
        for partition, (meta, last) in written.items():
            landed[partition] = meta, False
            if partition in whole:
                self._whole[partition] = meta.batch
                continue
            try:
                landed[partition] = meta, await self._made_whole(partition, meta, last, until)
            except Unavailable as error:
                landed[partition] = OutcomeUnknown(str(error))
            except (OutcomeUnknown, StoreReplaced) as error:
                landed[partition] = error
        return landed

    def _written(self, batch: Batch, there: Meta) -> _Written:
        """The partition's own row and all others, the redo itself among them. Raises Unavailable
        for a batch that is too large."""
        meta = there._replace(checkpoint=batch.checkpoint, batch=there.batch + 1)
        place = batch.partition, meta.generation
        mark = self._marked(batch.partition, meta.batch)
        puts = (*self._stored(*place, batch.puts.items()), mark)
        deletes = tuple(key for row in batch.deletes for key in self._keys(place, row))
        last = redo.Redo(meta.batch, meta.generation, puts, deletes)
        packed = last.packed()
        if len(packed) > redo.BYTES_MAX:
            rows = len(last.puts) + len(last.deletes)
            raise Unavailable(
                f"{self._client}: a batch of partition {batch.partition} has {len(packed)} bytes "
                f"in {rows} rows; it can have {redo.BYTES_MAX}"
            )
        return meta, last.beside(self._layout.redo(batch.partition), packed)

    async def _read_back(self, written: Mapping[int, _Written], until: float) -> set[int]:
        """The partitions whose batches are there, every row of them. Raises Unavailable."""
        keys = {partition: self._layout.meta(partition) for partition in written}
        rows = [key for _, last in written.values() for key in last.row_keys()]

        async def look(snapshot: Snapshot) -> dict[bytes, bytes]:
            return await snapshot.get_many([*keys.values(), *rows])

        found = await self._client.read(look, until)
        return {
            partition
            for partition, (meta, last) in written.items()
            if parse(found.get(keys[partition])) == meta and last.left_out(found) == ([], [])
        }

    async def clear_partition(self, partition: int, applier_epoch: int, checkpoint: bytes) -> None:
        """Makes another generation the current one; the rows go later (garbage.py)."""

        async def work(transaction: Transaction) -> Meta:
            meta = await self._own(transaction, partition, applier_epoch)
            meta = Meta(meta.epoch, meta.spare, meta.spare + 1, checkpoint, meta.batch)
            await transaction.put([(self._layout.meta(partition), meta.packed())])
            return meta

        async with self._turn(partition, applier_epoch):
            old = self._newest(partition).generation
            meta = await self._client.write(work)
            self._note(partition, meta)
            self.garbage.drop(partition, old, meta.generation)

    @asynccontextmanager
    async def _turn(self, partition: int, epoch: int) -> AsyncIterator[None]:
        async with self._turns[partition]:
            newest = self._epochs.get(partition)
            if newest != epoch:
                raise StaleWriter(
                    f"applier epoch {epoch} of partition {partition}: it is at {newest}"
                )
            if partition in self._unsettled:
                raise OutcomeUnknown(
                    f"partition {partition} must be opened again: what became of its last write is "
                    "not known"
                )
            async with self._settling(partition):
                yield

    @asynccontextmanager
    async def _settling(self, partition: int) -> AsyncIterator[None]:
        """Whatever ends the block that is not surely without effect, a cancellation for one, leaves
        the partition unsettled."""
        try:
            yield
        except (StaleWriter, Unavailable, ValueError):
            if partition not in self._unsettled:
                self._doubts.settle(partition, False)  # whoever saw another's batch of its number
            raise
        except BaseException:
            self._unsettled.add(partition)
            raise

    def _note(self, partition: int, meta: Meta) -> None:
        if meta.version >= self._newest(partition).version:
            self._seen[partition] = meta._replace(checkpoint=None)

    async def _own(self, transaction: Transaction, partition: int, epoch: int) -> Meta:
        """The partition's Meta, when this epoch is the newest."""
        key = self._layout.meta(partition)
        meta = parse((await transaction.get_many([key])).get(key))
        self._check_epoch(partition, meta, epoch)
        return meta

    def _check_epoch(self, partition: int, meta: Meta, epoch: int) -> None:
        """Raises StaleWriter, StoreReplaced."""
        if meta.epoch > epoch:
            raise StaleWriter(
                f"applier epoch {epoch} of partition {partition}: it is at {meta.epoch}"
            )
        if meta.epoch < epoch:
            raise StoreReplaced(self._other_store(partition))

    # --------------------------------------------------------------------- the last batch

    async def _redo_of(self, partition: int, meta: Meta, until: float) -> redo.Redo:
        """Of the partition's last batch, its own row included. Raises Damaged when it cannot be
        had."""
        key, mark = self._layout.redo(partition), self._layout.mark(partition)

        async def work(snapshot: Snapshot) -> tuple[bytes | None, int]:
            found = await snapshot.get_many([key, mark])
            return found.get(key), parse_mark(found.get(mark))

        row, number = await self._client.read(work, until)
        last = redo.Redo(0, 0, (), ()) if row is None else redo.parse(row)
        if not last.batch == meta.batch >= number:
            raise Damaged(f"batch {meta.batch} has the redo of {last.batch} and the mark {number}")
        return last if row is None else last.beside(key, row)

    async def _made_whole(self, partition: int, meta: Meta, last: redo.Redo, until: float) -> bool:
        """Read the batch (``last``: its own row included) back, and write what was left out, until
        nothing is. True when something was. Once there is another batch, whoever wrote that one
        has done it. Raises Unavailable, OutcomeUnknown, StoreReplaced."""
        if last.generation != meta.generation or not last.batch:
            return False  # thrown away since
        key, changed = self._layout.meta(partition), False

        async def look(snapshot: Snapshot) -> tuple[Meta, list[Pair], list[bytes]]:
            found = await snapshot.get_many([key, *last.row_keys()])
            return parse(found.get(key)), *last.left_out(found)

        while True:
            there, puts, deletes = await self._client.read(look, until)
            self._check_same_store(partition, there, meta)
            if _later(there, meta):
                return changed
            if there.batch == meta.batch and not (puts or deletes):
                self._whole[partition] = meta.batch
                return changed
            log.warning(
                "%s left %d rows of batch %d of partition %d out: they are written again",
                self._client,
                len(puts) + len(deletes) + (there.batch < meta.batch),
                last.batch,
                partition,
            )

            async def write_again(
                transaction: Transaction,
                puts: list[Pair] = puts,
                deletes: list[bytes] = deletes,
            ) -> None:
                there = parse((await transaction.get_many([key])).get(key))
                self._check_same_store(partition, there, meta)
                if not _later(there, meta):
                    # Meta as well, so that no batch comes in between.
                    there = there._replace(batch=meta.batch, checkpoint=meta.checkpoint)
                    await transaction.put([(key, there.packed()), *puts])
                    await transaction.delete(deletes)

            await self._client.write(write_again, until)
            changed = True

    def _check_same_store(self, partition: int, there: Meta, meta: Meta) -> None:
        """Left out is at most one batch's number. A store that knows less than that was wiped, and
        what it lacks is not to be written into it: nobody would fold the rest again."""
        if there.epoch < meta.epoch or there.batch < meta.batch - 1:
            raise StoreReplaced(self._other_store(partition))

    # ----------------------------------------------------------------------- stored rows

    def _row(self, key: bytes, generation: int) -> bytes:
        return self._layout.rows(partition_of(key), generation) + key[PARTITION_BYTES:]

    def _keys(self, place: tuple[int, int], key: bytes) -> Iterable[bytes]:
        """Of a row and of its shadow, if it has one."""
        own = key[PARTITION_BYTES:]
        yield self._layout.rows(*place) + own
        if own[:1] in self._shadowed:
            yield self._layout.shadows(*place) + inverted(own)

    def _stored(self, partition: int, generation: int, pairs: Iterable[Pair]) -> Iterable[Pair]:
        place = partition, generation
        for key, value in pairs:
            stored = scans.EMPTY_FREE + value
            for stored_key in self._keys(place, key):
                yield stored_key, stored

    # ------------------------------------------------------------------------- snapshots

    async def sync(self) -> None:
        """Nothing to do: what TiKV has committed is in the logs of a majority of a Raft group, each
        synced."""

    async def snapshot(self, folder: Path) -> None:
        async def look(snapshot: Snapshot) -> tuple[int, dict[int, Meta]]:
            there = await copies.metas(snapshot, self._layout, 0, PARTITIONS_END - 1)
            await self._hold(there)
            return snapshot.timestamp, there

        async with self._copying:
            timestamp, there = await self._client.read(look)
            await copies.take(self._client, self._layout, timestamp, there, folder, self._disk)

    async def load_partition(
        self, snapshot: Path, partition: int, applier_epoch: int, checkpoint: bytes
    ) -> None:
        """The rows go into a generation of their own, which a last small transaction makes the
        current one."""
        await asyncio.to_thread(lmdb_snapshot.check, snapshot)

        async def reserve(transaction: Transaction) -> Meta:
            meta = await self._own(transaction, partition, applier_epoch)
            meta = meta._replace(spare=meta.spare + 1)
            await transaction.put([(self._layout.meta(partition), meta.packed())])
            return meta

        async def switch(transaction: Transaction) -> Meta:
            meta = await self._own(transaction, partition, applier_epoch)
            meta = meta._replace(generation=loaded, checkpoint=checkpoint)
            await transaction.put([(self._layout.meta(partition), meta.packed())])
            return meta

        async with self._copying, self._turn(partition, applier_epoch):
            old = self._newest(partition).generation
            meta = await self._client.write(reserve)
            loaded = meta.spare - 1
            self._note(partition, meta)
            await copies.stage(self._client, snapshot, (partition, loaded), self._stored)
            self._note(partition, await self._client.write(switch))
            self.garbage.drop(partition, old, loaded)

    async def restore(self, snapshot: Path) -> None:
        """Order: fence every applier off, put the rows where nobody looks, and let all partitions
        look there in one transaction. Raises StaleWriter when somebody opened one meanwhile."""
        checkpoints = await asyncio.to_thread(lmdb_snapshot.checked, snapshot)

        fenced: dict[int, Meta] = {}
        metas: dict[int, Meta] = {}

        async def fence(transaction: Transaction) -> bool:
            there = await copies.metas(transaction, self._layout, 0, PARTITIONS_END - 1)
            for p in {*there, *checkpoints}:
                meta = there.get(p, Meta())
                if meta != fenced.get(p):
                    fenced[p] = meta._replace(epoch=meta.epoch + 1, spare=meta.spare + 1)
            return await self._put_metas(transaction, there, fenced)

        async def switch(transaction: Transaction) -> bool:
            there = await copies.metas(transaction, self._layout, 0, PARTITIONS_END - 1)
            if any(meta not in (fenced.get(p), metas.get(p)) for p, meta in there.items()):
                raise StaleWriter("a partition was opened while a snapshot was being restored")
            return await self._put_metas(transaction, there, metas)

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._copying)
            for partition in sorted({*self._turns, *checkpoints}):
                await stack.enter_async_context(self._turns[partition])
            self._epochs.clear()
            while await self._client.write(fence, self._client.deadline(_OPEN_S)):
                pass  # until all have been found to be there (redo.py)
            metas |= {
                p: Meta(meta.epoch, meta.spare - 1, meta.spare, checkpoints.get(p), meta.batch)
                for p, meta in fenced.items()
            }
            for partition, meta in fenced.items():
                self._note(partition, meta)
                if partition in checkpoints:
                    place = partition, meta.spare - 1
                    await copies.stage(self._client, snapshot, place, self._stored)
            while await self._client.write(switch, self._client.deadline(_OPEN_S)):
                pass
            for partition, meta in metas.items():
                self._note(partition, meta)
                self.garbage.drop(partition, 0, meta.generation)

    async def _put_metas(
        self, transaction: Transaction, there: dict[int, Meta], wanted: dict[int, Meta]
    ) -> bool:
        """Those that are not as wanted yet; False: all are."""
        rows = [
            (self._layout.meta(p), meta.packed())
            for p, meta in wanted.items()
            if there.get(p) != meta
        ]
        await transaction.put(rows)
        return bool(rows)

    async def close(self) -> None:
        """The loop is left alone for a moment (client.py, 7)."""
        await self._flights.close()
        await self.garbage.close()
        await self._client.close()


def _check_keys(partition: int, keys: Iterable[bytes]) -> None:
    prefix = partition.to_bytes(PARTITION_BYTES, "big")
    for key in keys:
        if len(key) > KEY_BYTES_MAX or not key.startswith(prefix):
            raise ValueError(
                f"a key of partition {partition} begins with its number and has at most "
                f"{KEY_BYTES_MAX} bytes; this one has {len(key)}: {key[:40]!r}"
            )


def _later(there: Meta, meta: Meta) -> bool:
    """Whether somebody has taken the partition over since, or thrown the rows away."""
    return (there.epoch, there.batch) > (meta.epoch, meta.batch) or (
        there.generation != meta.generation
    )
