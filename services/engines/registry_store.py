"""The embedded Registry: state in memory, every write fsynced in a journal before it counts.

Writes that arrive while an fsync is under way are judged together against what the first will
have made, and share the next one. A reader never sees what is not durable. Leases run on the
injected clock's monotonic time; keeping one alive is not written, so a restart gives every lease
its full time again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from imcore.errors import Code, Damaged, ImError, OutcomeUnknown, Refused, Unavailable
from imcore.runtime import Clock, Random
from services.engines.disk import Disk, File
from services.engines.registry_journal import Journal, draft_entries
from services.engines.registry_state import HISTORY_EVENTS, Draft, Lease, RegistryState
from services.ports import Versioned, WatchEvents

log = logging.getLogger("im.registry")

_EXPIRY_S = 0.1  # how often ended leases are looked for
_T = TypeVar("_T")


class _Change(NamedTuple):
    judge: Callable[[Draft], Any]
    outcome: asyncio.Future[Any]


class RegistryStore:
    """Registry of services.ports; made by ``open``. For use from one event loop."""

    def __init__(
        self, lock: File, journal: Journal, state: RegistryState, clock: Clock, rng: Random
    ) -> None:
        self._lock = lock
        self._journal = journal
        self._state = state
        self._clock = clock
        self._rng = rng
        self._thread = ThreadPoolExecutor(1, "registry")
        self._waiting: list[_Change] = []
        self._writer: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # replaced at every change; watchers wait on it
        self._closed = False
        self._expiry: asyncio.Task[None] | None = None
        self._problem = ""  # why ended leases cannot be removed; logged once

    @classmethod
    async def open(
        cls,
        folder: str,
        disk: Disk,
        clock: Clock,
        rng: Random,
        history_events: int = HISTORY_EVENTS,
    ) -> RegistryStore:
        """Raises Unavailable when another process holds the folder. A damaged file is set aside
        and the store comes up blank, with a new id: its proposals then abstain (section 5)."""
        lock, journal, state = await asyncio.to_thread(
            _load, folder, disk, clock.now(), rng, history_events
        )
        store = cls(lock, journal, state, clock, rng)
        store._expiry = asyncio.create_task(store._expire_for_ever())
        return store

    # --------------------------------------------------------------------------- reads

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the registry is closed")

    @property
    def revision(self) -> int:
        return self._state.revision

    async def store_id(self) -> bytes:
        self._check_open()
        return self._state.store_id

    async def get(self, key: bytes) -> Versioned | None:
        self._check_open()
        row = self._state.values.get(key)
        return row if row is not None and not self._is_over(row) else None

    async def range(self, prefix: bytes, *more: bytes) -> list[Versioned]:
        self._check_open()
        return [row for each in (prefix, *more) for row in self.standing(each)]

    def standing(self, prefix: bytes) -> list[Versioned]:
        """As readers see them."""
        return [row for row in self._state.range(prefix) if not self._is_over(row)]

    def _is_over(self, row: Versioned) -> bool:
        """Whether its lease has ended and it stands only until that is written down: on a full
        disk, for as long as there is no room."""
        lease = self._state.leases.get(row.lease)
        return lease is not None and lease.deadline <= self._clock.now()

    async def watch(self, prefix: bytes, from_revision: int = 0) -> AsyncIterator[WatchEvents]:
        while True:
            self._check_open()
            changed = self._changed
            found = self._state.since(prefix, from_revision)
            full = from_revision == 0 or found.compacted
            from_revision = found.revision + 1
            if full or found.events:
                yield found
            else:
                await changed.wait()

    # -------------------------------------------------------------------------- writes

    async def compare_and_swap(
        self, key: bytes, expected_mod_revision: int, value: bytes | None, lease: int = 0
    ) -> tuple[bool, Versioned | None]:
        def judge(draft: Draft) -> tuple[bool, Versioned | None]:
            current = draft.get(key)
            if current is not None and self._is_over(current):  # readers do not see it any more
                draft.end_lease(current.lease)
                current = draft.get(key)
            if (current.mod_revision if current else 0) != expected_mod_revision:
                return False, current
            _check_lease(draft, lease)
            return True, draft.write(key, value, lease)

        return await self._change(judge)

    async def put(self, key: bytes, value: bytes | None, lease: int = 0) -> None:
        def judge(draft: Draft) -> None:
            _check_lease(draft, lease)
            draft.write(key, value, lease)

        await self._change(judge)

    async def grant_lease(self, ttl_ms: int) -> int:
        if ttl_ms <= 0:
            raise ValueError(f"a lease lasts at least 1 ms, not {ttl_ms}")
        # Random, so that the holder of one that ended before a restart never keeps another alive.
        lease = self._rng.getrandbits(62) + 1
        await self._change(lambda draft: draft.granted.update({lease: ttl_ms}))
        return lease

    async def keep_alive(self, lease: int) -> bool:
        self._check_open()
        await self.expire()
        held = self._state.leases.get(lease)
        if held is None:
            return False
        held.deadline = self._clock.now() + held.ttl_ms / 1000
        return True

    async def revoke_lease(self, lease: int) -> None:
        await self._change(lambda draft: draft.end_lease(lease))

    async def expire(self) -> None:
        """End the leases whose time is over, keys and all; the store calls it by itself."""
        if self._overdue():
            await self._change(self._end_overdue)

    def _overdue(self) -> list[Lease]:
        now = self._clock.now()
        return [lease for lease in self._state.leases.values() if lease.deadline <= now]

    def _end_overdue(self, draft: Draft) -> None:
        # Judged again: a lease may have been kept alive while the change waited.
        for lease in self._overdue():
            draft.end_lease(lease.id)

    async def _expire_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRY_S)
            try:
                await self.expire()
                self._problem = ""
            except ImError as error:
                if str(error) != self._problem:
                    log.warning("ended leases cannot be removed: %s", error)
                self._problem = str(error)

    async def _change(self, judge: Callable[[Draft], _T]) -> _T:
        self._check_open()
        outcome: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Change(judge, outcome))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        return await outcome

    async def _write_all(self) -> None:
        """One at a time; ends when nothing waits."""
        try:
            while self._waiting:
                changes, self._waiting = self._waiting, []
                await self._write_together(changes)
        finally:
            self._writer = None

    async def _write_together(self, changes: list[_Change]) -> None:
        draft = Draft(self._state)
        judged: list[tuple[_Change, Any]] = []
        for change in changes:
            try:
                judged.append((change, change.judge(draft)))
            except ImError as error:
                _settle(change.outcome, error)
        data = draft_entries(draft)
        if data:
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._thread, self._persist, data)
            except Exception as error:
                failure = error if isinstance(error, ImError) else OutcomeUnknown(str(error))
                for change, _ in judged:
                    _settle(change.outcome, failure)
                return
            self._apply(draft)
        for change, result in judged:
            if not change.outcome.done():
                change.outcome.set_result(result)

    def _persist(self, data: bytes) -> None:
        """In the thread; the state does not change meanwhile, so it may be written whole."""
        if self._journal.has_grown:
            self._journal.create(self._state)
        self._journal.append(data)

    def _apply(self, draft: Draft) -> None:
        now = self._clock.now()
        for lease, ttl_ms in draft.granted.items():
            self._state.leases[lease] = Lease(lease, ttl_ms, now + ttl_ms / 1000)
        self._state.apply(draft.events)
        for lease in draft.ended:
            self._state.leases.pop(lease, None)
        if draft.events:
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def close(self) -> None:
        """Writes what was taken; watches end with Unavailable."""
        if self._closed:
            return
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
        if self._writer is not None:
            await self._writer
        self._wake()
        self._thread.shutdown(wait=True)
        self._journal.close()
        self._lock.close()


def _settle(outcome: asyncio.Future[Any], error: Exception) -> None:
    if not outcome.done():
        outcome.set_exception(error)


def _check_lease(draft: Draft, lease: int) -> None:
    if lease and not draft.has_lease(lease):
        raise Refused(Code.NOT_FOUND, f"lease {lease} has ended")


def _load(
    folder: str, disk: Disk, now: float, rng: Random, history_events: int
) -> tuple[File, Journal, RegistryState]:
    disk.make_folder(folder)
    lock = disk.lock(f"{folder}/lock", f"the registry {folder}")
    path = f"{folder}/registry.journal"
    journal = Journal(disk, path)
    try:
        try:
            state = RegistryState(history_events)
            journal.load(state, now)
            return lock, journal, state
        except FileNotFoundError:
            pass
        except Damaged as error:
            log.error("%s: it is set aside and the registry comes up blank", error)
            disk.rename(path, path + ".damaged")
        state = RegistryState(history_events)
        state.store_id = rng.randbytes(16)
        journal.create(state)
        return lock, journal, state
    except BaseException:
        journal.close()
        lock.close()
        raise
