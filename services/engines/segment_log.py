"""One origin's log on segment files: group commit, callbacks, reads.

The loop gives out lsns and chains at once and gathers packed records; one thread per log writes
them and has the dirty files fsynced side by side. Appends of one loop turn, and those that arrive
while an fsync is under way, share the next write. ``done`` callbacks run on the loop in lsn order,
after the fsync.

Invariant: ``durable`` <= what the files hold whole <= ``tail``. A failed write or fsync fails
everything above ``durable``, and nothing is taken until the files are cut back to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, wait
from typing import NamedTuple, TypeVar

from imcore.errors import Damaged, OutcomeUnknown, StaleWriter, Unavailable
from imcore.words import Origin
from services.engines.callbacks import Subscribers, guarded
from services.engines.copying import by_partition, new_records
from services.engines.recent import Recent
from services.engines.records import pack, records_after
from services.engines.segments import PartitionFiles
from services.ports import LogEnd, Record

log = logging.getLogger("im.log")

Done = Callable[[Sequence[Record] | Exception], None]
_T = TypeVar("_T")


class _Append(NamedTuple):
    records: list[Record]
    done: Done


class _Job(NamedTuple):
    part: _Part
    data: bytes
    first_lsn: int
    end: LogEnd


class _Part:
    """One partition, as the loop sees it."""

    def __init__(self, number: int, files: PartitionFiles, end: LogEnd) -> None:
        self.number = number
        self.files = files
        self.tail = end  # given out
        self.durable = end
        self.first = files.first_lsn()
        self.waiting: list[_Append] = []  # not handed to the thread yet
        self.flying: list[_Append] = []  # being written
        self.packed: list[bytes] = []  # the bytes of ``waiting``
        self.failed: Exception | None = None
        self.problem = ""  # the last failure that was logged
        self.recent = Recent()


class SegmentLog:
    """Log of services.ports. ``appendable`` is set for the own log only."""

    def __init__(
        self,
        origin: Origin,
        parts: Sequence[tuple[PartitionFiles, LogEnd]],
        readers: Executor,
        syncers: Executor,
        writer: Executor,
        before_cut: Callable[[Origin, int, int], None],
    ) -> None:
        """``writer`` has one thread, which is the log's own: it ends with the log.
        ``before_cut(origin, partition, lsn)`` runs in it before a cut."""
        self.origin = origin
        self.partitions = len(parts)
        self.appendable = False
        self._parts = [_Part(number, *part) for number, part in enumerate(parts)]
        self._readers = readers
        self._syncers = syncers
        self._before_cut = before_cut
        self._thread = writer
        self._loop = asyncio.get_running_loop()
        self._dirty: dict[int, _Part] = {}
        self._committing = False
        self._scheduled = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._subscribers = Subscribers()

    def end(self, partition: int) -> LogEnd:
        return self._parts[partition].durable

    def first_lsn(self, partition: int) -> int:
        return self._parts[partition].first

    # ------------------------------------------------------------------------- append

    def append(self, partition: int, epoch: int, payloads: Sequence[bytes], done: Done) -> int:
        if not self.appendable:
            raise ValueError(f"the log of {self.origin} is a copy here: only append_copy writes it")
        if not payloads:
            raise ValueError("an append needs at least one payload")
        part = self._parts[partition]
        first = part.tail.lsn + 1
        problem = self._refusal(part)
        if problem is None and epoch < part.tail.epoch:
            problem = StaleWriter(
                f"partition {partition} of {self.origin} is in epoch {part.tail.epoch}, not {epoch}"
            )
        if problem is not None:
            self._loop.call_soon(done, problem)
            return first
        self._enqueue(part, records_after(part.tail, partition, epoch, payloads), done)
        return first

    def _refusal(self, part: _Part) -> Exception | None:
        return Unavailable(f"the log of {self.origin} is closed") if self._closed else part.failed

    def _enqueue(self, part: _Part, records: list[Record], done: Done) -> None:
        """``records`` follow the tail; the caller has checked that."""
        part.packed.extend(map(pack, records))
        part.waiting.append(_Append(records, done))
        last = records[-1]
        part.tail = LogEnd(last.lsn, last.chain, last.epoch)
        self._dirty[part.number] = part
        if not (self._committing or self._scheduled):
            self._scheduled = True
            self._idle.clear()
            self._loop.call_soon(self._commit)

    def _commit(self) -> None:
        """Hand everything that waits to the thread."""
        self._scheduled = False
        jobs = []
        for part in self._dirty.values():
            part.flying, part.waiting = part.waiting, []
            jobs.append(_Job(part, b"".join(part.packed), part.flying[0].records[0].lsn, part.tail))
            part.packed.clear()
        self._dirty.clear()
        self._committing = bool(jobs)
        if jobs:
            self._thread.submit(self._write, jobs)
        else:
            self._idle.set()

    def _write(self, jobs: list[_Job]) -> None:
        """In the thread: write all partitions, then sync all."""
        failures: dict[int, Exception] = {}
        for job in jobs:
            _attempt(failures, job, lambda job: job.part.files.write(job.data, job.first_lsn))
        whole = [job for job in jobs if job.part.number not in failures]
        # Side by side: the file system then commits once for all of them (measured: one after the
        # other takes 6 to 25 times as long with four partitions).
        syncs = [self._syncers.submit(_attempt, failures, job, _sync) for job in whole[1:]]
        for job in whole[:1]:
            _attempt(failures, job, _sync)
        wait(syncs)
        self._loop.call_soon_threadsafe(self._committed, jobs, failures)

    def _committed(self, jobs: list[_Job], failures: dict[int, Exception]) -> None:
        told: list[tuple[Done, Sequence[Record] | Exception]] = []
        for part, _, _, end in jobs:
            failure = failures.get(part.number)
            flown, part.flying = part.flying, []
            if failure is not None:
                self._say(part, failure)
                told += [(item.done, failure) for item in flown]
                told += self._refuse(part, failure)
                continue
            part.durable = end
            part.problem = ""
            for item in flown:
                part.recent.add(item.records)
                told.append((item.done, item.records))
        self._commit()  # what arrived meanwhile is written while the callbacks run
        # Appliers are woken before acks are given: they then run before the gateway's flush, so an
        # ack leaves in one write with the push of its message (2 writes a message, not 3; a write
        # to a socket was the dearest single step of a message).
        if len(failures) < len(jobs):
            self._subscribers.tell()
        for done, result in told:
            guarded(done, result)

    def _say(self, part: _Part, failure: Exception) -> None:
        """Once, however often it is tried again."""
        if str(failure) != part.problem:
            part.problem = str(failure)
            log.error("partition %d of %s failed: %s", part.number, self.origin, failure)

    def _refuse(self, part: _Part, failure: Exception) -> list[tuple[Done, Exception]]:
        """Take nothing more, and forget what waits; returns who must be told."""
        part.failed = failure
        told = [(item.done, failure) for item in part.waiting]
        part.waiting.clear()
        part.packed.clear()
        self._dirty.pop(part.number, None)
        return told

    async def reopen(self, partition: int) -> LogEnd:
        part = self._parts[partition]
        if part.failed is not None and not self._closed:
            await self._in_thread(part.files.rollback)
            part.tail = part.durable
            part.failed = None
        return part.durable

    # -------------------------------------------------------------------------- copies

    async def append_copy(self, records: Sequence[Record]) -> None:
        parts = by_partition(records, self.partitions, self.origin)
        for number in parts:
            await self.reopen(number)
        new = {
            number: new_records(
                rows, self._parts[number].tail, self._parts[number].recent, self.origin
            )
            for number, rows in parts.items()
        }
        results = [self._copied(number, rows) for number, rows in new.items() if rows]
        # Held ones may still be on their way to the disk by another call: wait for them too.
        results += [
            self._settled(self._parts[number])
            for number, rows in new.items()
            if not rows and self._parts[number].tail != self._parts[number].durable
        ]
        for outcome in await asyncio.gather(*results):
            if isinstance(outcome, Exception):
                raise outcome

    def _copied(self, number: int, records: list[Record]) -> asyncio.Future[Exception | None]:
        part = self._parts[number]
        future: asyncio.Future[Exception | None] = self._loop.create_future()
        problem = self._refusal(part)
        if problem is not None:
            future.set_result(problem)
        else:
            self._enqueue(part, records, _resolver(future))
        return future

    def _settled(self, part: _Part) -> asyncio.Future[Exception | None]:
        """When what is on its way in this partition is durable, or has failed."""
        future: asyncio.Future[Exception | None] = self._loop.create_future()
        if part.failed is not None:
            future.set_result(part.failed)
        else:
            (part.waiting or part.flying).append(_Append([], _resolver(future)))
        return future

    async def start_at(self, partition: int, end: LogEnd) -> None:
        """An empty copy goes on from ``end`` (the position of a snapshot)."""
        if self._parts[partition].tail.lsn:
            raise ValueError(f"partition {partition} of {self.origin} is not empty")
        await self.restart_at(partition, end)

    async def restart_at(self, partition: int, end: LogEnd) -> None:
        """Forget what is held of a copy and go on from ``end``."""
        if self.appendable:
            raise ValueError(f"the own log of {self.origin} is never cut")
        part = self._parts[partition]
        moving = Unavailable(f"partition {partition} of {self.origin} begins anew")
        for done, failure in self._refuse(part, moving):
            guarded(done, failure)

        def restart() -> None:
            self._before_cut(self.origin, partition, 0)
            part.files.start_at(end)

        await self._in_thread(restart)
        part.recent.clear()
        part.tail = part.durable = end
        part.first = end.lsn + 1
        part.failed = None

    # --------------------------------------------------------------------------- reads

    async def read(self, partition: int, from_lsn: int, limit_bytes: int) -> list[Record]:
        part = self._parts[partition]
        durable = part.durable.lsn
        if from_lsn < part.first:
            raise LookupError(
                f"lsn {from_lsn} of partition {partition} of {self.origin} is truncated away; "
                f"the log starts at {part.first}"
            )
        if from_lsn > durable:
            return []
        recent = part.recent.read(from_lsn, durable, limit_bytes)
        if recent:
            return recent
        try:
            return await self._loop.run_in_executor(
                self._readers, part.files.read, from_lsn, durable, limit_bytes
            )
        except Damaged:
            if from_lsn > part.durable.lsn:  # it was cut while it was read
                return []
            raise

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._subscribers.add(callback)

    def stored_bytes(self, partition: int, above_lsn: int = 0) -> int:
        """About how much the records above ``above_lsn`` take on disk."""
        return self._parts[partition].files.bytes_above(above_lsn)

    # -------------------------------------------------------------- truncate, cut, close

    async def truncate_below(self, partition: int, lsn: int) -> None:
        part = self._parts[partition]
        await self._in_thread(lambda: part.files.truncate_below(lsn))
        part.first = part.files.first_lsn()

    async def cut_above(self, partition: int, lsn: int) -> None:
        if self.appendable:
            raise ValueError(f"the own log of {self.origin} is never cut")
        part = self._parts[partition]
        if lsn >= part.tail.lsn:
            return
        cutting = Unavailable(f"partition {partition} of {self.origin} is being cut")
        for done, failure in self._refuse(part, cutting):
            guarded(done, failure)

        def cut() -> LogEnd:
            self._before_cut(self.origin, partition, lsn)
            return part.files.cut_above(lsn)

        end = await self._in_thread(cut)
        part.recent.clear()
        part.tail = part.durable = end
        part.failed = None

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise Unavailable(f"the log of {self.origin} is closed")
        return await self._loop.run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Writes what was taken, then takes nothing more."""
        self._closed = True
        await self._idle.wait()
        self._thread.shutdown(wait=True)
        for part in self._parts:
            part.files.close()


def _attempt(failures: dict[int, Exception], job: _Job, step: Callable[[_Job], None]) -> None:
    try:
        step(job)
    except OSError as error:
        failures[job.part.number] = OutcomeUnknown(str(error))
    except Exception as error:
        failures[job.part.number] = error


def _sync(job: _Job) -> None:
    job.part.files.sync(job.end)


def _resolver(future: asyncio.Future[Exception | None]) -> Done:
    def done(result: Sequence[Record] | Exception) -> None:
        if not future.done():
            future.set_result(result if isinstance(result, Exception) else None)

    return done
