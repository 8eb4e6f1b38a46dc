"""Audit chains on disk: files of one writer, appended under a lock, fsynced.

A file that is full is put aside, by the number of its last event (``audit-000000004711.jsonl``),
and the next line begins a new one. The chain goes over all of them: end to end they are what one
file would be. Nothing deletes those that were put aside.

Decisions are rare, so each event opens the file and reads its end anew: several processes (every
``imctl``) may write one chain, and a crash of any of them leaves nothing to be recovered but the
line that it tore.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any

from imcore.audit import EMPTY, Anchor, parse, seal, torn
from imcore.folders import sync

LOGGER = "im.audit"  # JSON events; whoever runs a process decides where they are kept
FILE = "audit.jsonl"
FULL_BYTES = 4 << 20  # some thousands of decisions
_BLOCK_BYTES = 65_536
_TOGETHER = 100  # events that are made durable at once

log = logging.getLogger("im.auditfile")


def append(path: Path, writer: str, *events: Mapping[str, Any]) -> Anchor:
    """Durable when it returns. Raises OSError: then they may be in the file, in part too (the next
    event notes that); ValueError for an event that cannot be written, and none of them is."""
    descriptor = _locked(path)
    try:
        new = os.fstat(descriptor).st_size == 0
        last, rest = _end(descriptor)
        line = parse(last)
        head = _head_aside(path) if line is None else line.anchor
        data = b""
        if rest:
            whole = parse(rest)
            if whole is not None and whole.follows(head):  # only its newline is missing
                head, data = whole.anchor, b"\n"
            else:
                data = b"\n" + seal(torn(rest), writer, head)
                head = Anchor(head.seq + 1, _hash_of(data))
        for event in events:
            sealed = seal(event, writer, head)
            data += sealed
            head = Anchor(head.seq + 1, _hash_of(sealed))
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
        if new:
            sync(path.parent)
        return head
    finally:
        os.close(descriptor)  # gives up the lock


def _locked(path: Path) -> int:
    """The file that is being written, open and locked; it was not full when it was looked at."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is(descriptor, path) and not _put_aside(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has put it aside, or this one: there is a new one


def _is(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _put_aside(descriptor: int, path: Path) -> bool:
    """Only where a line ends: what a crash tore is noted in the file where it stands."""
    if os.fstat(descriptor).st_size < FULL_BYTES:
        return False
    last, rest = _end(descriptor)
    line = parse(last)
    if line is None or rest:
        return False
    aside = path.with_name(f"{path.stem}-{line.anchor.seq:012}{path.suffix}")
    if aside.exists():
        return False  # nobody's file is written over; this one grows on
    path.rename(aside)
    sync(path.parent)
    return True


def _aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-{'[0-9]' * 12}{path.suffix}"))


def _head_aside(path: Path) -> Anchor:
    """Where the chain stands before the first line of a new file."""
    for file in _aside(path)[-1:]:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            line = parse(_end(descriptor)[0])
        finally:
            os.close(descriptor)
        if line is not None:
            return line.anchor
    return EMPTY


def files(path: Path) -> list[Path]:
    """Those of a chain that there are, in its order; ``path`` is the one that is written."""
    return [*_aside(path), *([path] if path.exists() else [])]


def read(path: Path, start: int = 0, most: int | None = None) -> bytes:
    """The chain from this byte on, ``most`` bytes of it; empty: there is none. Raises OSError."""
    while True:
        aside = _aside(path)
        data, skip, room = [], start, most
        for file in [*aside, path]:
            try:
                with file.open("rb") as opened:
                    size = os.fstat(opened.fileno()).st_size
                    opened.seek(min(skip, size))
                    skip -= min(skip, size)
                    data.append(opened.read() if room is None else opened.read(room))
                    if room is not None:
                        room -= len(data[-1])
            except FileNotFoundError:
                if file != path:
                    raise
        if _aside(path) == aside:  # else the file was put aside meanwhile
            return b"".join(data)


def size(path: Path) -> int:
    """Bytes of the whole chain. Raises OSError."""
    return sum(file.stat().st_size for file in files(path))


def _hash_of(sealed: bytes) -> str:
    line = parse(sealed.strip(b"\n"))
    assert line is not None
    return line.anchor.hash


def _end(descriptor: int) -> tuple[bytes, bytes]:
    """The last whole line (empty: there is none), and what stands behind it that is none: bytes
    that a crash left."""
    start = os.fstat(descriptor).st_size
    data = b""
    while start > 0:
        block = min(start, _BLOCK_BYTES)
        start -= block
        data = os.pread(descriptor, block, start) + data
        pieces = data.split(b"\n")
        for at in range(len(pieces) - 2, -1 if start == 0 else 0, -1):
            if parse(pieces[at]) is not None:
                return pieces[at], b"\n".join(pieces[at + 1 :])
    return b"", data


def note(path: Path, writer: str, event: Mapping[str, Any]) -> None:
    """``append``; an event that cannot be written is said on ``im.auditfile``, and no error: what
    it tells of has happened already."""
    try:
        append(path, writer, event)
    except (OSError, ValueError) as error:
        log.error("%s: an audit event could not be written: %s", path, error)


class _Chain(QueueListener):
    """Notes the events that a logger has queued: all that wait at once, as an fsync may take
    longer than the next event takes to come."""

    def __init__(
        self,
        events: queue.SimpleQueue[logging.LogRecord | None],
        path: Path,
        writer: str,
        more: Mapping[str, Any],
    ) -> None:
        super().__init__(events)
        self._events = events
        self._path = path
        self._writer = writer
        self._more = more

    def handle(self, record: logging.LogRecord) -> None:
        records = [record]
        while len(records) < _TOGETHER and not self._events.empty():
            if (more := self._events.get()) is None:
                self.enqueue_sentinel()  # the end; it is for the loop that has called this
                break
            records.append(more)
        if not (events := [each for each in map(self._event, records) if each is not None]):
            return
        try:
            append(self._path, self._writer, *events)
        except Exception as error:
            # Else the listener's thread would end, and every later decision be noted by nobody.
            self._say(error, len(events))

    def _event(self, record: logging.LogRecord) -> dict[str, Any] | None:
        """None: it cannot be written, which is said, and costs no other one."""
        try:
            event = {**json.loads(record.getMessage()), **self._more}
            seal(event, self._writer, EMPTY)
        except Exception as error:
            self._say(error, 1)
            return None
        return event

    def _say(self, error: Exception, count: int) -> None:
        what = "an audit event" if count == 1 else f"{count} audit events"
        log.error("%s: %s could not be written: %r", self._path, what, error)


_block: ContextVar[object] = ContextVar("block", default=None)


@contextmanager
def kept(
    path: Path, writer: str, more: Mapping[str, Any] | None = None, own: bool = False
) -> Iterator[None]:
    """Events of this block go into the chain; written when the block ends. ``more``: fields that
    each of them gets. ``own``: only those of this task and of what it began, where others write
    other chains at the same time. In a thread, because an fsync may take long and a server must
    not wait."""
    events: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
    handler = QueueHandler(events)
    if own:
        _block.set(handler)
        handler.addFilter(lambda record: _block.get() is handler)
    listener = _Chain(events, path, writer, more or {})
    logger = logging.getLogger(LOGGER)
    level = logger.level
    listener.start()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        listener.stop()
