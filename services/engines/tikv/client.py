"""The only place that knows tikv_client: deadlines, what its errors mean, and how transactions end.

The package binds TiKV's Rust client. Calls return asyncio futures and run in threads of its own, so
the loop is blocked only while arguments are copied (about 25 ns a byte). To cancel a future drops
the call wherever it is, but not what it has sent to a region, which is even sent again for some
20 s. What follows from that, and from how the Rust client commits:

1. Nothing is trusted to end in time. Every call, commit and rollback has a deadline of ours.
2. Before ``commit``, a transaction is a buffer here: whatever fails is surely not done.
3. Of what ``commit`` raises, a write conflict and a lock that cannot be resolved come from its
   first phase: surely not done, and tried again. Everything else, a deadline included, is
   OutcomeUnknown: of a lost answer to the deciding call the Rust client tells only some kinds.
4. After an unknown outcome nothing is rolled back: where the transaction has been committed, that
   would tear out its secondary keys. Whoever meets its locks settles it, once they are 3 s old.
5. A transaction that is dropped while active panics. So each is committed or rolled back, if need
   be in the background; one whose rollback was begun may be dropped.
6. A region whose leader PD did not know when it was asked stays unreachable for that client: then
   the client is made anew.
7. A commit that succeeded may have left keys out: redo.py.
8. At exit the interpreter crashes while a thread of the client still hands in a result: ``close``
   waits for that.

Errors are plain Exceptions, told apart by text; the texts are those of the pinned version.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from imcore.errors import BadInput, DiskFull, OutcomeUnknown, Unavailable

log = logging.getLogger("im.kv")

PACKAGE, VERSION = "tikv-client", "0.0.4"
SCAN_ROWS_MAX = 10_240  # what one scan may ask for
# Longer than a lock of a dead transaction lasts (3 s). With less, a busy machine ran into a storm:
# what was given up held its locks, and what met them was given up too.
DEADLINE_S = 6.0
_CONNECT_S = 3.0
_ROLLBACK_S = 3.0  # as long as a lock that nobody rolls back keeps others out
_DRAIN_S = 0.3  # 0.25 s was enough in every run
_PAUSE_S = 0.01  # before the first repetition; doubled
_PAUSE_MAX_S = 0.2
_PUTS_AT_ONCE = 32
_PAGE_ROWS = 2_048  # of a scan; less when an answer is larger than the 4 MiB that gRPC takes
_TEXT_MAX = 160
# From the first phase of a commit only.
_CONFLICT = "conflict: Some(WriteConflict"
_LOCKED = "Failed to resolve lock"
_FULL = "disk_full: Some("
_TOO_LARGE = "message length too large"
# PD did not know the leader (it had just started, say), and the client never asks it again.
_NO_LEADER = "Leader of region"
# None of PD's members takes it: they are away, or of another cluster now, which only a new client
# would talk to.
_NO_MEMBER = "failed to connect to [Member"
_T = TypeVar("_T")
Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class TikvSettings:
    """``pd``: the members' addresses. ``prefix``: of all keys. ``deadline_s``: of one call of the
    port, all that it reads and writes for it and repetitions included."""

    pd: tuple[str, ...]
    prefix: str
    deadline_s: float = DEADLINE_S


class Again(Exception):
    """For ``work`` to raise: what it found does not hold, another attempt at a newer timestamp may
    find what does."""


class Snapshot:
    """Reads at one timestamp. Values are never empty in TiKV as it is used here."""

    def __init__(self, inner: Any, timestamp: int = 0) -> None:
        self._inner = inner
        self.timestamp = timestamp  # for ``read_at``; a transaction tells none
        self._page_rows = _PAGE_ROWS

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those that exist."""
        try:
            # The mock answers with an empty value for a key that is missing.
            return {key: value for key, value in await self._inner.batch_get(list(keys)) if value}
        except Exception as error:
            if not _too_large(error) or len(keys) == 1:
                raise
        half = len(keys) // 2
        return await self.get_many(keys[:half]) | await self.get_many(keys[half:])

    async def scan(self, start: bytes, end: bytes, limit: int) -> list[Pair]:
        """Ascending, in as many pages as it takes."""
        found: list[Pair] = []
        while len(found) < limit and start < end:
            wanted = min(limit - len(found), self._page_rows)
            try:
                page: list[Pair] = await self._inner.scan(start, end, wanted)
            except Exception as error:
                if not _too_large(error) or wanted == 1:
                    raise
                self._page_rows = max(1, wanted // 4)
                continue
            found += page
            if len(page) < wanted:
                break
            start = page[-1][0] + b"\0"
        return found

    async def scan_keys(self, start: bytes, end: bytes, limit: int) -> list[bytes]:
        """``limit`` is at most SCAN_ROWS_MAX."""
        found: list[bytes] = await self._inner.scan_keys(start, end, limit)
        return found


class Transaction(Snapshot):
    """Reads of its start, and writes that are buffered until it is committed. The first key that is
    written becomes the primary, which decides over all."""

    async def put(self, pairs: Iterable[Pair]) -> None:
        await self._each(self._inner.inner.put, pairs)

    async def delete(self, keys: Iterable[bytes]) -> None:
        await self._each(self._inner.inner.delete, ((key,) for key in keys))

    async def _each(self, call: Callable[..., Awaitable[None]], rows: Iterable[Any]) -> None:
        pending: list[Awaitable[None]] = []
        for row in rows:
            pending.append(call(*row))
            if len(pending) == _PUTS_AT_ONCE:
                await asyncio.gather(*pending)
                pending.clear()
        await asyncio.gather(*pending)


class TikvClient:
    """For use from one event loop. Connects when it is first needed."""

    def __init__(self, settings: TikvSettings) -> None:
        self._library = _library()
        self._settings = settings
        self._inner: Any = None
        self._connecting = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False

    def __str__(self) -> str:
        return f"TiKV behind PD {', '.join(self._settings.pd)}"

    # --------------------------------------------------------------------------- reads

    def deadline(self, least_s: float = 0.0) -> float:
        """Of what begins now, as a time of the loop: for calls that have one together."""
        return asyncio.get_running_loop().time() + max(least_s, self._settings.deadline_s)

    async def read(
        self, work: Callable[[Snapshot], Awaitable[_T]], until: float | None = None
    ) -> _T:
        """What ``work`` reads of the newest state; it may be called again. ``until``: a deadline
        of the caller's. Raises Unavailable."""

        async def attempt(client: Any) -> _T:
            timestamp = await client.current_timestamp()
            return await work(Snapshot(client.snapshot(timestamp, False), timestamp))

        return await self._repeat(attempt, until)

    async def read_at(
        self, timestamp: int, work: Callable[[Snapshot], Awaitable[_T]], within_s: float
    ) -> _T:
        async def attempt(client: Any) -> _T:
            return await work(Snapshot(client.snapshot(timestamp, False), timestamp))

        return await self._repeat(attempt, asyncio.get_running_loop().time() + within_s)

    async def timestamp(self) -> int:
        """Of now. Raises Unavailable."""

        async def attempt(client: Any) -> int:
            return int(await client.current_timestamp())

        return await self._repeat(attempt)

    # --------------------------------------------------------------------------- writes

    async def write(
        self, work: Callable[[Transaction], Awaitable[_T]], until: float | None = None
    ) -> _T:
        """One transaction; ``work`` reads, judges and writes, may be called again on a conflict,
        and what it raises ends it without a trace. ``until`` as in ``read``. Raises Unavailable
        (surely not done), OutcomeUnknown (perhaps done, or still to be)."""

        async def attempt(client: Any) -> _T:
            inner: Any = await self._begin(client)
            ended = False
            try:
                result = await work(Transaction(inner))
                ended = True
                ended = await self._commit(inner)  # True until it returns
                if not ended:
                    raise Again
                return result
            except asyncio.CancelledError as error:
                # A deadline arrives as a cancellation; in ``commit`` it must not look harmless.
                if ended:
                    raise _Committing from error
                raise
            finally:
                if not ended:
                    self._behind(self._roll_back(inner))
                # A traceback that is kept would keep it alive, and it renews its locks while it is.
                inner = None

        return await self._repeat(attempt, until)

    async def _commit(self, inner: Any) -> bool:
        """False: surely not done, because of another transaction. Raises OutcomeUnknown."""
        committing = inner.inner.commit()
        inner = None
        try:
            await committing
        except BaseException as error:
            if type(error) is Exception and _not_done(error):
                return False
            if type(error) is Exception or _is_panic(error):
                raise OutcomeUnknown(f"{self}: {_said(error)}") from None
            raise
        return True

    async def _begin(self, client: Any) -> Any:
        """To drop this call could drop an active transaction, so it is left to end by itself."""
        begun = asyncio.ensure_future(client.begin(pessimistic=False))
        try:
            return await asyncio.shield(begun)
        except asyncio.CancelledError:
            self._behind(self._end_when_begun(begun))
            raise

    async def _end_when_begun(self, begun: asyncio.Future[Any]) -> None:
        with contextlib.suppress(Exception):
            await self._roll_back(await begun)

    async def _roll_back(self, inner: Any) -> None:
        try:
            async with asyncio.timeout(_ROLLBACK_S):
                await inner.rollback()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                raise
            log.debug("%s: a rollback did not end well: %s", self, _said(error))

    def _behind(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # ------------------------------------------------------------------------ housekeeping

    async def collect_garbage(self, timestamp: int, within_s: float) -> None:
        """Versions that nobody can see from this timestamp on may go, in the whole cluster."""

        async def attempt(client: Any) -> None:
            await client.inner.gc(timestamp)

        await self._repeat(attempt, asyncio.get_running_loop().time() + within_s)

    async def close(self) -> None:
        self._closed = True
        if self._background:
            await asyncio.wait(self._background, timeout=_ROLLBACK_S + 1)
        self._inner = None
        await asyncio.sleep(_DRAIN_S)

    # ---------------------------------------------------------------------------- every call

    async def _repeat(
        self, attempt: Callable[[Any], Awaitable[_T]], until: float | None = None
    ) -> _T:
        """Until it succeeds, is judged, or the time is over."""
        loop = asyncio.get_running_loop()
        deadline = self.deadline() if until is None else until
        pause, last = _PAUSE_S, "no answer in time"
        while True:
            try:
                async with asyncio.timeout_at(deadline) as timer:
                    return await attempt(await self._connected())
            except _Committing as error:
                if timer.expired():
                    raise OutcomeUnknown(f"{self}: a commit was not answered in time") from error
                raise asyncio.CancelledError from error
            except TimeoutError as error:
                raise Unavailable(f"{self}: {last}") from error
            except Again:
                last = "another transaction writes the same"
                if loop.time() + pause >= deadline or self._closed:
                    raise Unavailable(f"{self}: {last}") from None
            except BaseException as error:
                if type(error) is not Exception and not _is_panic(error):
                    raise
                last = _said(error)
                if last.startswith((_NO_LEADER, _NO_MEMBER)):
                    self._inner = None
                if _FULL in str(error):
                    raise DiskFull(f"{self}: its disk is full") from error
                if loop.time() + pause >= deadline or self._closed:
                    raise Unavailable(f"{self}: {last}") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX_S)

    async def _connected(self) -> Any:
        if self._closed:
            raise Unavailable(f"{self} is closed")
        if self._inner is None:
            async with self._connecting:
                if self._inner is None:
                    async with asyncio.timeout(_CONNECT_S):
                        connect = self._library.TransactionClient.connect
                        self._inner = await connect(list(self._settings.pd))
        return self._inner


class _Committing(Exception):
    """Cancelled, by a deadline or by the caller, after the commit had begun."""


def _library() -> Any:
    """Raises BadInput."""
    try:
        installed = importlib.metadata.version(PACKAGE)
        library = importlib.import_module("tikv_client.asynchronous")
    except (importlib.metadata.PackageNotFoundError, ImportError) as error:
        raise BadInput(
            f"engines.kv.tikv needs the package {PACKAGE}=={VERSION}, which is published for "
            f"CPython 3.11 on Linux x86-64 only: {error}"
        ) from error
    if installed != VERSION:
        raise BadInput(
            f"engines.kv.tikv needs {PACKAGE}=={VERSION}, whose errors it knows by their texts; "
            f"{installed} is installed"
        )
    return library


def _not_done(error: Exception) -> bool:
    """Of what ``commit`` raised."""
    text = str(error)
    return _CONFLICT in text or text.startswith(_LOCKED)


def _too_large(error: Exception) -> bool:
    return _TOO_LARGE in str(error)


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[[^\]]*\.rs:\d+\]: ", "", text)  # where in the client's own sources
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "..."
