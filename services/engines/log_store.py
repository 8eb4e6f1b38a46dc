"""All logs of one IDC in one folder, held by one process at a time.

    FOLDER/lock                              flock, held for life: the fence of rule 5. A paused
                                             holder keeps it, so nobody takes over before it is dead
    FOLDER/store.json                        log id, boot counts, own origin, damage, written ends
    FOLDER/logs/ORIGIN/PARTITION/LSN.seg     segment files (services.engines.segments)

Damage that was found stays on record, and ``clean`` False, until a boot is confirmed, so that a
crash in between cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from imcore.errors import BadInput, ImError, Unavailable
from imcore.runtime import Random
from imcore.sometimes import DAMAGED, sometimes
from imcore.words import Origin, parse_origin
from services.engines.disk import Disk, File
from services.engines.recovery import Missing, recover
from services.engines.segment_log import SegmentLog
from services.engines.segments import SEGMENT_BYTES, PartitionFiles
from services.ports import Log, LogEnd

log = logging.getLogger("im.log")

_FORMAT = 1
_SYNC_THREADS = 8  # of all logs together; they only wait for the disk


class Damage(NamedTuple):
    """Lsns first..last of a partition were written here once and are gone; peers may refill."""

    origin: Origin
    partition: int
    first: int
    last: int


@dataclass(slots=True)
class _Meta:
    log_id: bytes
    partitions: int
    confirmed: int = 0
    pending: int = 0
    own: Origin | None = None
    damage: list[Damage] = field(default_factory=list)
    ends: dict[Origin, list[int]] = field(default_factory=dict)  # written at a clean close

    def dump(self) -> bytes:
        document = {
            "format": _FORMAT,
            "log_id": self.log_id.hex(),
            "partitions": self.partitions,
            "boot": {"confirmed": self.confirmed, "pending": self.pending},
            "own": str(self.own) if self.own else None,
            "damage": [[str(d.origin), d.partition, d.first, d.last] for d in self.damage],
            "ends": {str(origin): ends for origin, ends in self.ends.items()},
        }
        return json.dumps(document, indent=1).encode()


class _Boot(NamedTuple):
    confirmed: int
    pending: int


class _Document(BaseModel):
    """``_Meta.dump``, as it is read."""

    model_config = ConfigDict(strict=True)

    log_id: str
    partitions: int
    boot: _Boot
    own: str | None
    damage: list[tuple[str, int, int, int]]
    ends: dict[str, list[int]]


def _parse_meta(data: bytes, path: str) -> _Meta:
    try:
        found = json.loads(data)["format"]
        if found != _FORMAT:
            raise BadInput(f"{path} has format {found!r:.20}, this program reads {_FORMAT}")
        document = _Document.model_validate_json(data)
        if any(len(ends) != document.partitions for ends in document.ends.values()):
            raise ValueError("`ends` are not of as many partitions as there are")
        return _Meta(
            bytes.fromhex(document.log_id),
            document.partitions,
            document.boot.confirmed,
            document.boot.pending,
            parse_origin(document.own) if document.own else None,
            [Damage(parse_origin(origin), *rest) for origin, *rest in document.damage],
            {parse_origin(origin): ends for origin, ends in document.ends.items()},
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path} is not a log store's description: {error}") from error


class SegmentLogStore:
    """LogStore of services.ports; made by ``open``."""

    durability = "fsync"
    fsynced = True
    filled_from_outside = False

    def __init__(
        self,
        folder: str,
        disk: Disk,
        lock: File,
        meta: _Meta,
        rng: Random,
        segment_bytes: int,
        executor: Callable[[int, str], Executor],
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._lock = lock
        self._meta = meta
        self._rng = rng
        self._meta_lock = threading.Lock()  # cuts change it from the logs' threads
        self._segment_bytes = segment_bytes
        self._executor = executor
        self._readers = executor(2, "log-read")
        self._syncers = executor(_SYNC_THREADS, "log-sync")
        self._logs: dict[Origin, SegmentLog] = {}
        self._opening = asyncio.Lock()
        self._closed = False
        self.log_id = meta.log_id
        self.clean = True  # nothing of the own log is damaged since a boot was last confirmed
        self._judge()
        self.confirmed_boot_count = meta.confirmed
        self.last_boot_count = meta.pending
        self.boot_count = meta.pending + 1

    @classmethod
    async def open(
        cls,
        folder: str,
        partitions: int,
        disk: Disk,
        rng: Random,
        segment_bytes: int = SEGMENT_BYTES,
        executor: Callable[[int, str], Executor] = ThreadPoolExecutor,
    ) -> SegmentLogStore:
        """Raises Unavailable when another process holds the folder, BadInput when it does not fit.
        ``executor``: so many threads of a name.

        ``confirmed_boot_count`` and ``last_boot_count`` are what earlier openings confirmed and
        persisted: a register that this store confirmed, or was about to, lies between them.
        """
        lock, meta = await asyncio.to_thread(_take, folder, partitions, disk, rng)
        store = cls(folder, disk, lock, meta, rng, segment_bytes, executor)
        try:
            await store._start()
        except BaseException:
            store._release()
            raise
        return store

    async def _start(self) -> None:
        self._meta.pending = self.boot_count
        await asyncio.to_thread(self._save)
        for name in self._disk.list(f"{self._folder}/logs"):
            await self._load(parse_origin(name))

    # ------------------------------------------------------------------------- what is here

    def _judge(self) -> None:
        self.clean = not any(damage.origin == self._meta.own for damage in self._meta.damage)

    @property
    def damage(self) -> list[Damage]:
        """Of all logs, copies included."""
        return list(self._meta.damage)

    @property
    def own_origin(self) -> Origin | None:
        """The origin whose log was last opened as the own one."""
        return self._meta.own

    def own(self) -> SegmentLog | None:
        return self._logs.get(self._meta.own) if self._meta.own else None

    def held(self) -> dict[Origin, Log]:
        return {**self._logs}

    # ------------------------------------------------------------------------------ opening

    async def open_own(self, origin: Origin) -> SegmentLog:
        own = self._meta.own
        if own is not None and own.idc == origin.idc and own > origin:
            raise ValueError(f"{origin} is over: this store is at {own}")
        async with self._opening:
            opened = await self._load(origin)
            if own != origin:
                self._meta.own = origin
                self._judge()
                await asyncio.to_thread(self._save)
        for held in self._logs.values():
            held.appendable = held is opened
        return opened

    async def open_copy(self, origin: Origin) -> SegmentLog:
        if origin == self._meta.own:
            raise ValueError(f"{origin} is this store's own log")
        async with self._opening:
            return await self._load(origin)

    async def _load(self, origin: Origin) -> SegmentLog:
        if self._closed:
            raise Unavailable(f"the log store {self._folder} is closed")
        opened = self._logs.get(origin)
        if opened is None:
            parts = await asyncio.to_thread(self._recover, origin)
            writer = self._executor(1, f"log-{origin}")
            opened = SegmentLog(
                origin, parts, self._readers, self._syncers, writer, self._before_cut
            )
            self._logs[origin] = opened
        return opened

    def _recover(self, origin: Origin) -> list[tuple[PartitionFiles, LogEnd]]:
        written = self._meta.ends.get(origin, [0] * self._meta.partitions)
        parts: list[tuple[PartitionFiles, LogEnd]] = []
        for number in range(self._meta.partitions):
            recovered = recover(
                self._disk,
                f"{self._folder}/logs/{origin}/{number}",
                number,
                written[number],
                self._segment_bytes,
                partial(self._record_damage, origin, number),
            )
            parts.append((recovered.files, recovered.end))
        return parts

    # ---------------------------------------------------------------------------- the file

    def _save(self) -> None:
        with self._meta_lock:
            self._disk.write_whole(f"{self._folder}/store.json", self._meta.dump())

    def _record_damage(self, origin: Origin, partition: int, missing: Missing) -> None:
        """Before the cut that would hide it from the next opening."""
        sometimes(DAMAGED)
        damage = Damage(origin, partition, missing.first, missing.last)
        log.error(
            "the log of %s is damaged: lsn %d to %d of partition %d are missing",
            origin,
            missing.first,
            missing.last,
            partition,
        )
        if damage not in self._meta.damage:
            self._meta.damage.append(damage)
        ends = self._meta.ends.get(origin)
        if ends:
            ends[partition] = min(ends[partition], missing.first - 1)
        self._save()
        self._judge()

    def _before_cut(self, origin: Origin, partition: int, lsn: int) -> None:
        """A cut is no damage: lower the written end first."""
        ends = self._meta.ends.get(origin)
        if ends and ends[partition] > lsn:
            ends[partition] = lsn
            self._save()

    def alarms(self) -> list[str]:
        return []

    async def confirm_boot(self) -> None:
        self._meta.confirmed = self.boot_count
        self._meta.damage.clear()
        self._judge()
        await asyncio.to_thread(self._save)
        self.confirmed_boot_count = self.boot_count

    async def renew(self) -> None:
        self._meta.log_id = self.log_id = self._rng.randbytes(16)
        await asyncio.to_thread(self._save)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for held in self._logs.values():
            await held.close()
            self._meta.ends[held.origin] = [held.end(n).lsn for n in range(held.partitions)]
        try:
            await asyncio.to_thread(self._save)
        except ImError as error:
            log.warning("the ends of the logs could not be written down: %s", error)
        finally:
            self._release()

    def _release(self) -> None:
        self._readers.shutdown(wait=True)
        self._syncers.shutdown(wait=True)
        self._lock.close()


def _take(folder: str, partitions: int, disk: Disk, rng: Random) -> tuple[File, _Meta]:
    """Lock the folder and read (or make) its description."""
    disk.make_folder(folder)
    lock = disk.lock(f"{folder}/lock", f"the log store {folder}")
    try:
        return lock, _read_meta(folder, partitions, disk, rng)
    except BaseException:
        lock.close()
        raise


def _read_meta(folder: str, partitions: int, disk: Disk, rng: Random) -> _Meta:
    path = f"{folder}/store.json"
    try:
        meta = _parse_meta(disk.read(path), path)
    except FileNotFoundError:
        if disk.list(f"{folder}/logs"):
            raise BadInput(
                f"{folder} holds logs but no store.json: restore it or remove the folder"
            ) from None
        return _Meta(rng.randbytes(16), partitions)
    if meta.partitions != partitions:
        raise BadInput(
            f"{folder} has {meta.partitions} partitions, the region file says {partitions}: "
            "the number is fixed for the life of a region"
        )
    return meta
