"""Kv on LMDB: one environment, one writer (the process), commits on the loop without an fsync.

Why a crash leaves a consistent earlier state. LMDB copies on write: a commit writes new pages, then
one of two meta pages. Killed between, the process leaves the older meta page in charge, and the
page cache keeps what was written; so a kill never harms. A power loss may: unsynced pages reach the
disk in any order, so a meta page may point at pages that were never written. Therefore ``sync``

1. opens a read transaction at the committed state, which keeps every page of that state from being
   used again for as long as it is open, and copies that state's meta page;
2. fsyncs the data file;
3. writes the copy durably to ``steady``, and only then ends the older sync's read transaction.

So at any time the pages of the state in ``steady`` are whole on disk. ``open`` finds in ``running``
whether the process before ended cleanly, or crashed under the machine's same boot; if neither, it
puts the meta page of ``steady`` back (services.engines.lmdb_steady), which goes back to the last
sync. If that is impossible, the file is set aside and the KV starts empty, for a rebuild from a
snapshot or the logs. Since pages are not used again between two syncs, the file grows with what is
committed in between: a sync is started after every ``sync_commits`` commits.

A synced commit per batch (MDB_NOMETASYNC) would be simpler, but puts an fsync and a thread change
between log and push.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar
from weakref import WeakSet

import lmdb

from imcore.errors import DiskFull, OutcomeUnknown, StaleWriter, Unavailable
from imcore.sometimes import ROLLED_BACK, sometimes
from services.engines import lmdb_snapshot, lmdb_steady
from services.engines.disk import Disk, File
from services.ports import Batch

log = logging.getLogger("im.kv")

# While this file is synced, the log's fsyncs wait: the file system puts newly written pages of both
# into one transaction. With 512 commits a sync (130 ms at 16,384) that was the p99 of every ack: 10
# to 15 ms at 900 messages/s, 5 to 7 with 64, for as much CPU time.
SYNC_COMMITS = 64
MAP_BYTES = 256 * 1024 * 1024  # to begin with; doubled when full
_LITTLE_ROOM_BYTES = 16 * 1024 * 1024
_PARTITION = struct.Struct(">H")
_T = TypeVar("_T")


class LmdbKv:
    """Kv of services.ports; made by ``open``. For use from one event loop."""

    opened: ClassVar[WeakSet[LmdbKv]] = WeakSet()  # in this process; for who simulates several

    def __init__(
        self, folder: str, disk: Disk, boot: str, map_bytes: int, sync_commits: int
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._boot = boot
        self._map_bytes = map_bytes
        self._sync_commits = sync_commits
        # A long write in a thread keeps commits waiting, not the loop.
        self._writing = asyncio.Lock()
        self._syncing = asyncio.Lock()
        self._mapped = asyncio.Lock()  # while it is held the map stays as it is
        self._closed = True
        self.rolled_back = False  # a power loss took it back to an earlier state, or to nothing

    @classmethod
    async def open(
        cls,
        folder: str,
        disk: Disk,
        machine_boot: str | None = None,
        map_bytes: int = MAP_BYTES,
        sync_commits: int = SYNC_COMMITS,
    ) -> LmdbKv:
        """``machine_boot`` names the machine's current boot (default: the kernel's boot id).
        Raises Unavailable when another process holds the folder."""
        boot = lmdb_steady.machine_boot() if machine_boot is None else machine_boot
        kv = cls(folder, disk, boot, map_bytes, sync_commits)
        await kv._begin()
        return kv

    async def _begin(self) -> None:
        rolled_back, lock = await asyncio.to_thread(
            lmdb_steady.prepare, self._folder, self._disk, self._boot
        )
        try:
            try:
                self._open_files(lock)
            except (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError):
                await asyncio.to_thread(lmdb_steady.set_aside, self._folder, self._disk)
                rolled_back = True
                self._open_files(lock)
        except lmdb.Error as error:
            lock.close()
            raise _translate(error, self._folder) from error
        self.rolled_back = rolled_back
        if rolled_back:
            sometimes(ROLLED_BACK)
        try:
            await self.sync()
        except BaseException:
            self._release()
            raise

    def _open_files(self, lock: File) -> None:
        self._env = lmdb.open(
            self._folder, map_size=self._map_bytes, sync=False, max_dbs=2, max_spare_txns=2
        )
        try:
            self._meta_db = self._env.open_db(lmdb_snapshot.PARTITIONS)
            self._rows_db = self._env.open_db(lmdb_snapshot.ROWS)
            self._data = open(f"{self._folder}/data.mdb", "rb", buffering=0)  # noqa: SIM115
        except BaseException:
            self._env.close()
            raise
        self._lock = lock
        self._map_bytes = int(self._env.info()["map_size"])
        self._epochs: dict[int, int] = {}
        self._reader: lmdb.Transaction[bytes] | None = None
        self._steady: lmdb.Transaction[bytes] | None = None
        self._unsynced_commits = 0
        self._background: asyncio.Task[None] | None = None
        self._closed = False
        self.opened.add(self)

    # --------------------------------------------------------------------------- reads

    def _reading(self) -> lmdb.Transaction[bytes]:
        """One read transaction serves until the next commit."""
        if self._closed:
            raise Unavailable(f"the KV {self._folder} is closed")
        if self._reader is None:
            self._reader = self._env.begin()
        return self._reader

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.abort()
            self._reader = None

    async def get(self, key: bytes) -> bytes | None:
        try:
            return self._reading().get(key, db=self._rows_db)
        except lmdb.Error as error:
            raise _translate(error, self._folder) from error

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        get, db = self._reading().get, self._rows_db
        try:
            return [get(key, db=db) for key in keys]
        except lmdb.Error as error:
            raise _translate(error, self._folder) from error

    async def scan(
        self, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        if limit <= 0 or start >= end:
            return []
        try:
            return self._scan(start, end, limit, reverse)
        except lmdb.Error as error:
            raise _translate(error, self._folder) from error

    def _scan(
        self, start: bytes, end: bytes, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        with self._reading().cursor(db=self._rows_db) as cursor:
            if reverse:
                more = cursor.prev() if cursor.set_range(end) else cursor.last()
                step = cursor.prev
            else:
                more = cursor.set_range(start)
                step = cursor.next
            while more and len(found) < limit:
                pair = cursor.item()
                if not start <= pair[0] < end:
                    break
                found.append(pair)
                more = step()
        return found

    # -------------------------------------------------------------------------- writes

    async def open_partition(self, partition: int) -> tuple[int, bytes | None]:
        async with self._writing:

            def take(txn: lmdb.Transaction[bytes]) -> tuple[int, bytes | None]:
                epoch, checkpoint = lmdb_snapshot.parse(self._row(txn, partition))
                txn.put(
                    _PARTITION.pack(partition),
                    lmdb_snapshot.form(epoch + 1, checkpoint),
                    db=self._meta_db,
                )
                return epoch + 1, checkpoint

            epoch, checkpoint = await self._write(take)
            self._epochs[partition] = epoch
        await self.sync()
        if self.rolled_back:
            await asyncio.to_thread(lmdb_steady.told, self._folder, self._disk)
        return epoch, checkpoint

    async def commit(self, batch: Batch) -> None:
        async with self._writing:
            self._check(batch.partition, batch.applier_epoch)
            await self._write(functools.partial(self._put_batch, batch))
        self._unsynced_commits += 1
        if self._unsynced_commits >= self._sync_commits and self._background is None:
            self._unsynced_commits = 0
            self._background = asyncio.create_task(self._sync_behind())

    async def _sync_behind(self) -> None:
        try:
            await self.sync()
        except (Unavailable, OutcomeUnknown) as error:
            log.warning("the KV %s could not be synced: %s", self._folder, error)
        finally:
            self._background = None

    def _put_batch(self, batch: Batch, txn: lmdb.Transaction[bytes]) -> None:
        db = self._rows_db
        for key in batch.deletes:
            txn.delete(key, db=db)
        for key, value in batch.puts.items():
            txn.put(key, value, db=db)
        row = lmdb_snapshot.form(batch.applier_epoch, batch.checkpoint)
        txn.put(_PARTITION.pack(batch.partition), row, db=self._meta_db)

    async def clear_partition(self, partition: int, applier_epoch: int, checkpoint: bytes) -> None:
        """In a thread, since it may be long; other partitions' commits wait."""

        def clear(txn: lmdb.Transaction[bytes]) -> None:
            prefix = _PARTITION.pack(partition)
            with txn.cursor(db=self._rows_db) as cursor:
                more = cursor.set_range(prefix)
                while more and cursor.key().startswith(prefix):
                    more = cursor.delete()
            txn.put(prefix, lmdb_snapshot.form(applier_epoch, checkpoint), db=self._meta_db)

        async with self._writing:
            self._check(partition, applier_epoch)
            await self._write(clear, in_thread=True)

    async def load_partition(
        self, snapshot: Path, partition: int, applier_epoch: int, checkpoint: bytes
    ) -> None:
        """In a thread."""
        prefix = _PARTITION.pack(partition)

        def load(txn: lmdb.Transaction[bytes]) -> None:
            lmdb_snapshot.load_rows(snapshot, prefix, txn, self._rows_db)
            txn.put(prefix, lmdb_snapshot.form(applier_epoch, checkpoint), db=self._meta_db)

        await asyncio.to_thread(lmdb_snapshot.check, snapshot)
        async with self._writing:
            self._check(partition, applier_epoch)
            await self._write(load, in_thread=True)

    def _check(self, partition: int, epoch: int) -> None:
        newest = self._epochs.get(partition)
        if newest != epoch:
            raise StaleWriter(f"applier epoch {epoch} of partition {partition}: it is at {newest}")

    def _row(self, txn: lmdb.Transaction[bytes], partition: int) -> bytes | None:
        return txn.get(_PARTITION.pack(partition), db=self._meta_db)

    async def _write(
        self, change: Callable[[lmdb.Transaction[bytes]], _T], in_thread: bool = False
    ) -> _T:
        """One atomic transaction; repeated in a larger map when it does not fit."""
        if self._closed:
            raise Unavailable(f"the KV {self._folder} is closed")
        if self._disk.faults.full:
            raise DiskFull(f"cannot write {self._folder}: the disk is full (injected fault)")
        while True:
            try:
                if in_thread:
                    result = await asyncio.to_thread(self._transact, change)
                else:
                    result = self._transact(change)
            except lmdb.MapFullError:
                await self._grow()
            except lmdb.Error as error:
                raise _translate(error, self._folder) from error
            else:
                self._forget_reader()
                return result

    def _transact(self, change: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        with self._env.begin(write=True) as txn:
            return change(txn)

    async def _grow(self) -> None:
        """The map may only be changed while no transaction is open, so the state is synced first:
        the read transaction that guards the last one can then end without harm."""
        async with self._mapped, self._syncing:
            await self._sync()
            self._forget_reader()
            self._end_steady()
            self._map_bytes *= 2
            self._env.set_mapsize(self._map_bytes)
            self._steady = self._env.begin()
        log.info("the KV %s has room for %d MiB now", self._folder, self._map_bytes >> 20)

    # -------------------------------------------------------------- sync, snapshot, close

    async def sync(self) -> None:
        async with self._syncing:
            await self._sync()

    async def _sync(self) -> None:
        if self._closed:
            raise Unavailable(f"the KV {self._folder} is closed")
        guard = self._env.begin()
        try:
            txn_id = guard.id()
            if self._steady is not None and self._steady.id() == txn_id:
                guard.abort()
                return
            # No commit can come between ``begin`` and this read: commits are made on this loop,
            # or in a thread under ``_writing``, whose commit moves on to the other meta page.
            meta = lmdb_steady.meta_page(self._data.fileno(), txn_id)
            await asyncio.to_thread(self._make_steady, meta)
        except BaseException:
            guard.abort()
            raise
        self._end_steady()
        self._steady = guard

    def _make_steady(self, meta: bytes) -> None:
        lmdb_steady.sync_data(self._data.fileno(), self._folder, self._disk)
        lmdb_steady.save(self._folder, self._disk, meta)

    def _end_steady(self) -> None:
        if self._steady is not None:
            self._steady.abort()
            self._steady = None

    async def snapshot(self, folder: Path) -> None:
        if self._closed:
            raise Unavailable(f"the KV {self._folder} is closed")
        async with self._writing:
            # The map cannot grow while a copy is made, and who needs it to would wait for that.
            info, page = self._env.info(), self._env.stat()["psize"]
            if 2 * (info["last_pgno"] + 1) * page > info["map_size"]:
                await self._grow()
        async with self._mapped:
            txn = self._env.begin()
            try:
                await asyncio.to_thread(lmdb_snapshot.take, self._env, txn, folder, self._disk)
            except lmdb.Error as error:
                raise _translate(error, str(folder)) from error
            finally:
                txn.abort()

    async def restore(self, snapshot: Path) -> None:
        await self.close()
        try:
            await asyncio.to_thread(lmdb_snapshot.restore, snapshot, Path(self._folder), self._disk)
        finally:
            await self._begin()

    async def close(self) -> None:
        if self._closed:
            return
        if self._background is not None:
            await self._background
        async with self._writing, self._mapped, self._syncing:
            try:
                await self._sync()
                await asyncio.to_thread(lmdb_steady.mark_clean, self._folder, self._disk)
            except (Unavailable, OutcomeUnknown) as error:
                log.warning("the KV %s was closed without a sync: %s", self._folder, error)
            finally:
                self._release()

    def _release(self) -> None:
        self._closed = True
        self._forget_reader()
        self._end_steady()
        self._env.close()
        self._data.close()
        self._lock.close()


def _translate(error: lmdb.Error, folder: str) -> Exception:
    if isinstance(error, lmdb.BadValsizeError):
        # No waiting makes a key shorter: whoever made it has a defect, and must be seen to have it.
        return ValueError(f"the KV {folder} cannot take a key of this size: {error}")
    code = getattr(error, "code", 0)
    # LMDB reports a short write as an I/O error: what a disk does when it has just become full.
    no_room = code == errno.EIO and _room_bytes(folder) < _LITTLE_ROOM_BYTES
    if no_room or code in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"cannot write {folder}: the disk is full")
    return Unavailable(f"the KV {folder} failed: {error}")


def _room_bytes(folder: str) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize
