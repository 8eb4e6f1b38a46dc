"""Where the outbox is kept: an sqlite file, or memory (load generators, throw-away clients).

Written before the first send means on the disk, not in the page cache: WAL with
``synchronous=FULL`` syncs every commit, so a message that the service may have accepted is in the
outbox after a power loss too. (NORMAL would keep the file whole but could forget the last
commits: an acked message might then be lost together with its origin, and its cid be used
twice.) What is composed in one loop turn, and while a commit is under way, shares one commit.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from services.sdk.core.outbox import Change, Delete, Put, PutLane, PutRow
from services.sdk.errors import OutboxLocked, SdkError, StoreFailed

log = logging.getLogger("im.sdk")


class Stored(NamedTuple):
    outbox: str
    epoch: int  # the last connection epoch; 0: none
    lanes: list[PutLane]
    entries: list[Put]
    rows: dict[str, bytes]  # of what is encrypted with, by name


class Store(Protocol):
    def open(self, new_id: Callable[[], str]) -> Stored:
        """Raises OutboxLocked, SdkError. ``new_id`` makes the store's random id when it is new."""
        ...

    def write(self, changes: Sequence[Change], done: Callable[[Exception | None], None]) -> None:
        """``done`` is called from the loop, in order, when the batch is durable (None) or not."""
        ...

    async def raise_epoch(self, at_least: int) -> int:
        """The connection epoch of the next connection, durable when it returns. Raises
        StoreFailed."""
        ...

    async def close(self) -> None: ...


class MemoryStore:
    """Nothing survives the process: acked messages that are not replicated may be lost with it."""

    def __init__(self) -> None:
        self._epoch = 0

    def open(self, new_id: Callable[[], str]) -> Stored:
        return Stored(new_id(), 0, [], [], {})

    def write(self, changes: Sequence[Change], done: Callable[[Exception | None], None]) -> None:
        done(None)

    async def raise_epoch(self, at_least: int) -> int:
        self._epoch = max(self._epoch + 1, at_least)
        return self._epoch

    async def close(self) -> None:
        return


_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lane (
  conversation TEXT, outbox TEXT, number INTEGER NOT NULL, next_cid INTEGER NOT NULL,
  abandoned INTEGER NOT NULL, PRIMARY KEY (conversation, outbox)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
  conversation TEXT, outbox TEXT, cid INTEGER, content BLOB NOT NULL, composed_ms INTEGER NOT NULL,
  durability INTEGER NOT NULL, placed BLOB NOT NULL, replicated INTEGER NOT NULL,
  refs BLOB NOT NULL DEFAULT x'', encrypted INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (conversation, outbox, cid)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS crypt (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


class SqliteStore:
    """One file, locked (``<file>.lock``) for one client for as long as it is open."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock: IO[bytes] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._db: sqlite3.Connection | None = None
        self._batch: list[tuple[Sequence[Change], Callable[[Exception | None], None]]] = []
        self._commit: asyncio.Task[None] | None = None
        self._epoch = 0

    def open(self, new_id: Callable[[], str]) -> Stored:
        self._take_lock()
        try:
            self._db = db = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False
            )
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)
            columns = [row[1] for row in db.execute("PRAGMA table_info(entry)")]
            if "refs" not in columns:  # a file of before messages could refer to others
                db.execute("ALTER TABLE entry ADD COLUMN refs BLOB NOT NULL DEFAULT x''")
            if "encrypted" not in columns:
                db.execute("ALTER TABLE entry ADD COLUMN encrypted INTEGER NOT NULL DEFAULT 0")
            db.execute("INSERT OR IGNORE INTO meta VALUES ('outbox', ?)", (new_id(),))
            db.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', '0')")
            meta = dict(db.execute("SELECT name, value FROM meta"))
            lanes = [
                PutLane(row[0], row[1], row[2], row[3], bool(row[4]))
                for row in db.execute(
                    "SELECT conversation, outbox, number, next_cid, abandoned FROM lane"
                )
            ]
            entries = [
                Put(*row)
                for row in db.execute(
                    "SELECT conversation, outbox, cid, content, composed_ms, durability, placed, "
                    "replicated, refs, encrypted FROM entry"
                )
            ]
            rows = dict(db.execute("SELECT name, value FROM crypt"))
        except sqlite3.Error as error:
            self.let_go()
            raise SdkError(f"the outbox {self._path} cannot be opened: {error}") from error
        self._thread = ThreadPoolExecutor(1, "outbox")
        self._epoch = int(meta["epoch"])
        return Stored(meta["outbox"], self._epoch, lanes, entries, rows)

    def _take_lock(self) -> None:
        path = self._path.with_name(self._path.name + ".lock")
        try:
            self._lock = path.open("ab")
        except OSError as error:
            raise SdkError(f"the outbox {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            self._lock = None
            raise OutboxLocked(
                f"the outbox {self._path} is in use by another client; "
                "give each client a file of its own"
            ) from error
        os.set_inheritable(self._lock.fileno(), False)

    def write(self, changes: Sequence[Change], done: Callable[[Exception | None], None]) -> None:
        self._batch.append((changes, done))
        if self._commit is None:
            self._commit = asyncio.get_running_loop().create_task(self._commit_all())

    async def _commit_all(self) -> None:
        """Everything that came meanwhile is the next commit."""
        loop = asyncio.get_running_loop()
        try:
            while self._batch:
                batch, self._batch = self._batch, []
                changes = [change for some, _ in batch for change in some]
                failed: Exception | None = None
                try:
                    await loop.run_in_executor(self._thread, self._apply, changes)
                except Exception as error:  # sqlite3's, and what cannot be bound as a value
                    failed = StoreFailed(f"the outbox {self._path} cannot be written: {error}")
                for _, done in batch:
                    try:
                        done(failed)
                    except Exception:  # one caller's fault must not cost the others their answer
                        log.exception("what follows a write of the outbox failed")
        finally:
            self._commit = None  # or no later write would ever be made

    def _apply(self, changes: list[Change]) -> None:
        assert self._db is not None
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                if isinstance(change, Put):
                    db.execute("INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?,?,?)", change)
                elif isinstance(change, Delete):
                    db.execute(
                        "DELETE FROM entry WHERE conversation=? AND outbox=? AND cid=?", change
                    )
                elif isinstance(change, PutRow):
                    db.execute("INSERT OR REPLACE INTO crypt VALUES (?,?)", change)
                else:
                    db.execute("INSERT OR REPLACE INTO lane VALUES (?,?,?,?,?)", change)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    async def raise_epoch(self, at_least: int) -> int:
        self._epoch = max(self._epoch + 1, at_least)
        epoch = self._epoch
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._write_epoch, epoch)
        except sqlite3.Error as error:
            raise StoreFailed(f"the outbox {self._path} cannot be written: {error}") from error
        return epoch

    def _write_epoch(self, epoch: int) -> None:
        assert self._db is not None
        self._db.execute("UPDATE meta SET value=? WHERE name='epoch'", (str(epoch),))

    async def close(self) -> None:
        try:
            if self._commit is not None:
                await self._commit
        finally:  # whatever went wrong: the next client of this file must not find it locked
            if self._thread is not None:
                self._thread.shutdown(wait=True)
                self._thread = None
            self.let_go()

    def let_go(self) -> None:
        """Of file and lock, as a process does that dies; what was committed stays."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
