"""Consistent copies of a KV, with a digest that is checked before one is used; blocking.

A copy is verified when it is made: it is opened again, and every row in it, checkpoints included,
is compared, by hash, with the state that it was made of. Scans pause between pages: they run in a
thread beside the loop that serves clients, and may take their time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Sequence
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import lmdb

from imcore.errors import BadInput, Damaged, Unavailable
from services.engines.disk import PASSING, Disk, translated
from services.engines.lmdb_steady import RESTORED

DATA = "data.mdb"
MANIFEST = "snapshot.json"
_PAGE_ROWS = 128
_MAP_BYTES = 64 << 20  # of a snapshot that is written row by row, to begin with; doubled when full
_REST_FACTOR = 3.0  # a scan takes this share of its time off
_LENGTHS = struct.Struct(">II")
PARTITIONS, ROWS = b"partitions", b"rows"
DATABASES = (PARTITIONS, ROWS)
_PARTITION = struct.Struct(">H")
_ROW = struct.Struct(">QB")  # applier epoch, whether a checkpoint follows


def form(epoch: int, checkpoint: bytes | None) -> bytes:
    """A partition's own row."""
    return _ROW.pack(epoch, checkpoint is not None) + (checkpoint or b"")


def parse(row: bytes | None) -> tuple[int, bytes | None]:
    if row is None:
        return 0, None
    epoch, there = _ROW.unpack_from(row)
    return epoch, row[_ROW.size :] if there else None


def take(env: lmdb.Environment, txn: lmdb.Transaction[bytes], folder: Path, disk: Disk) -> None:
    """Order: copy into ``FOLDER.new``, sync, describe, rename: a folder with its name is whole."""
    if folder.exists():
        raise BadInput(f"{folder} exists already: a snapshot goes to a new folder")
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    disk.make_folder(str(new))
    env.copy(str(new), compact=True, txn=txn)
    digest = _synced_digest(new / DATA)
    _verify(env, txn, new)
    write_manifest(new, digest, disk)
    disk.rename(str(new), str(folder))
    disk.sync_folder(str(folder.parent))


def write_manifest(folder: Path, digest: str, disk: Disk) -> None:
    disk.write_whole(str(folder / MANIFEST), json.dumps({"blake2b": digest}).encode())


def _verify(env: lmdb.Environment, txn: lmdb.Transaction[bytes], copy: Path) -> None:
    """Raises Damaged when the copy does not hold what ``txn`` sees."""
    opened = _open(copy)
    try:
        with opened.begin() as copied:
            for name in DATABASES:
                wanted = _rows_hash(txn, env.open_db(name, txn, create=False))
                found = _rows_hash(copied, opened.open_db(name, copied, create=False))
                if found != wanted:
                    raise Damaged(f"the snapshot {copy} does not hold the state it was taken of")
    finally:
        opened.close()


def _open(folder: Path) -> lmdb.Environment:
    return lmdb.open(str(folder), readonly=True, lock=False, max_dbs=len(DATABASES))


def _rows_hash(txn: lmdb.Transaction[bytes], db: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with txn.cursor(db=db) as cursor:
        began = time.perf_counter()
        for number, (key, value) in enumerate(cursor, 1):
            digest.update(_LENGTHS.pack(len(key), len(value)) + key + value)
            if number % _PAGE_ROWS == 0:
                time.sleep(_REST_FACTOR * (time.perf_counter() - began))
                began = time.perf_counter()
    return digest.digest()


def check(folder: Path) -> str:
    """The digest of a snapshot's file. Raises Damaged when it is not what was written, BadInput
    when there is no snapshot, Unavailable when it cannot be read just now."""
    wanted = manifest_digest(folder)
    try:
        with open(folder / DATA, "rb") as file:
            found = _digest(file)
    except OSError as error:
        sentence = f"cannot read {folder / DATA}: {error.strerror}"
        raise Unavailable(sentence) if error.errno in PASSING else Damaged(sentence) from error
    if found != wanted:
        raise Damaged(f"the snapshot {folder} fails its check")
    return found


def checkpoints(folder: Path) -> dict[int, bytes]:
    """What the snapshot holds, by partition. Raises Damaged when it cannot be opened, Unavailable
    when it cannot be just now."""
    try:
        opened = _open(folder)
    except lmdb.Error as error:
        sentence = f"the snapshot {folder} cannot be opened: {error}"
        passing = getattr(error, "code", 0) in PASSING
        raise Unavailable(sentence) if passing else Damaged(sentence) from error
    try:
        with opened.begin() as txn, txn.cursor(db=opened.open_db(PARTITIONS, txn)) as cursor:
            rows = {_PARTITION.unpack(key)[0]: parse(row)[1] for key, row in cursor}
    finally:
        opened.close()
    return {partition: row for partition, row in rows.items() if row is not None}


def checked(folder: Path) -> dict[int, bytes]:
    """The checkpoints of a snapshot that has just been checked (``check``; same errors)."""
    check(folder)
    return checkpoints(folder)


def load_rows(folder: Path, prefix: bytes, txn: lmdb.Transaction[bytes], db: Any) -> None:
    """Put the snapshot's rows with this prefix in the place of those that ``txn`` sees."""
    with txn.cursor(db=db) as cursor:
        more = cursor.set_range(prefix)
        while more and cursor.key().startswith(prefix):
            more = cursor.delete()
    opened = _open(folder)
    try:
        with opened.begin() as source, source.cursor(db=opened.open_db(ROWS, source)) as rows:
            more = rows.set_range(prefix)
            while more and rows.key().startswith(prefix):
                txn.put(rows.key(), rows.value(), db=db)
                more = rows.next()
    finally:
        opened.close()


def manifest_digest(snapshot: Path) -> str:
    """What the digest of a snapshot's file was. Raises BadInput, Damaged."""
    try:
        return str(json.loads((snapshot / MANIFEST).read_bytes())["blake2b"])
    except FileNotFoundError as error:
        raise BadInput(f"{snapshot} is no KV snapshot: it has no {MANIFEST}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{snapshot / MANIFEST} cannot be read") from error


def restore(snapshot: Path, folder: Path, disk: Disk) -> None:
    """Order: copy beside the old file, check, forget the old one, rename."""
    wanted = manifest_digest(snapshot)
    disk.make_folder(str(folder))
    lock = disk.lock(str(folder / "lock"), f"the KV {folder}")
    try:
        new = folder / RESTORED
        try:
            with translated("copy", str(snapshot / DATA)):
                shutil.copyfile(snapshot / DATA, new)
                if _synced_digest(new) != wanted:
                    raise Damaged(f"the snapshot {snapshot} fails its check")
        except BaseException:
            new.unlink(missing_ok=True)  # it takes the room that the next try needs
            raise
        # The data file goes first: without one, the others are not looked at.
        for name in ("data.mdb", "lock.mdb", "steady", "running"):
            disk.remove(str(folder / name))
            disk.sync_folder(str(folder))
        os.replace(new, folder / "data.mdb")
        disk.sync_folder(str(folder))
    finally:
        lock.close()


def _synced_digest(path: Path) -> str:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
        return _digest(file)


def _digest(file: BufferedReader | BufferedRandom) -> str:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Writer:
    """Makes a snapshot of rows that come from elsewhere, page by page and in the order of their
    keys; checked like ``take``: reopened, and compared by hash with what was given to it. Its
    folder has its name once ``finish`` has returned. Calls may come from several threads, one at a
    time. Raises BadInput, Damaged, and what the disk raises."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        if folder.exists():
            raise BadInput(f"{folder} exists already: a snapshot goes to a new folder")
        self._folder, self._disk = folder, disk
        self._new = folder.with_name(folder.name + ".new")
        shutil.rmtree(self._new, ignore_errors=True)
        disk.make_folder(str(self._new))
        self._env = lmdb.open(
            str(self._new), lock=False, sync=False, map_size=_MAP_BYTES, max_dbs=len(DATABASES)
        )
        self._dbs = {name: self._env.open_db(name) for name in DATABASES}
        self._given = {name: hashlib.blake2b(digest_size=16) for name in DATABASES}

    def partition(self, number: int, epoch: int, checkpoint: bytes | None) -> None:
        self._put(PARTITIONS, [(_PARTITION.pack(number), form(epoch, checkpoint))])

    def rows(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        self._put(ROWS, pairs)

    def _put(self, name: bytes, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        while True:
            try:
                with self._env.begin(write=True, db=self._dbs[name]) as txn:
                    for key, value in pairs:
                        txn.put(key, value, append=True)
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
        for key, value in pairs:
            self._given[name].update(_LENGTHS.pack(len(key), len(value)) + key + value)

    def finish(self) -> None:
        self._env.close()
        digest = _synced_digest(self._new / DATA)
        opened = _open(self._new)
        try:
            with opened.begin() as txn:
                for name in DATABASES:
                    found = _rows_hash(txn, opened.open_db(name, txn, create=False))
                    if found != self._given[name].digest():
                        raise Damaged(f"the snapshot {self._new} does not hold what it was made of")
        finally:
            opened.close()
        write_manifest(self._new, digest, self._disk)
        self._disk.rename(str(self._new), str(self._folder))
        self._disk.sync_folder(str(self._folder.parent))

    def abandon(self) -> None:
        self._env.close()
        shutil.rmtree(self._new, ignore_errors=True)


def rows_from(folder: Path, start: bytes, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    """Up to ``limit`` of the snapshot's rows with this prefix, from ``start`` on."""
    found: list[tuple[bytes, bytes]] = []
    opened = _open(folder)
    try:
        with opened.begin() as txn, txn.cursor(db=opened.open_db(ROWS, txn)) as rows:
            more = rows.set_range(max(start, prefix))
            while more and len(found) < limit and rows.key().startswith(prefix):
                found.append(rows.item())
                more = rows.next()
    finally:
        opened.close()
    return found
