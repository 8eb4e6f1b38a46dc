"""Audit chains on disk: one file a writer, appended under a lock, fsynced.

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

LOGGER = "im.audit"  # JSON events; whoever runs a process decides where they are kept
FILE = "audit.jsonl"
_BLOCK_BYTES = 65_536

log = logging.getLogger("im.auditfile")


def append(path: Path, writer: str, event: Mapping[str, Any]) -> Anchor:
    """Durable when it returns. Raises OSError: then it may be in the file, in part too (the next
    event notes that); ValueError for an event that cannot be written."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        new = os.fstat(descriptor).st_size == 0
        last, rest = _end(descriptor)
        line = parse(last)
        head = EMPTY if line is None else line.anchor
        data = b""
        if rest:
            whole = parse(rest)
            if whole is not None and whole.follows(head):  # only its newline is missing
                head, data = whole.anchor, b"\n"
            else:
                data = b"\n" + seal(torn(rest), writer, head)
                head = Anchor(head.seq + 1, _hash_of(data))
        sealed = seal(event, writer, head)
        data += sealed
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
        if new:
            _sync_folder(path.parent)
        return Anchor(head.seq + 1, _hash_of(sealed))
    finally:
        os.close(descriptor)  # gives up the lock


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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def note(path: Path, writer: str, event: Mapping[str, Any]) -> None:
    """``append``; an event that cannot be written is said on ``im.auditfile``, and no error: what
    it tells of has happened already."""
    try:
        append(path, writer, event)
    except (OSError, ValueError) as error:
        log.error("%s: an audit event could not be written: %s", path, error)


class ChainHandler(logging.Handler):
    """Notes the events of a logger."""

    def __init__(self, path: Path, writer: str, more: Mapping[str, Any]) -> None:
        super().__init__()
        self._path = path
        self._writer = writer
        self._more = more

    def emit(self, record: logging.LogRecord) -> None:
        note(self._path, self._writer, {**json.loads(record.getMessage()), **self._more})


_block: ContextVar[object] = ContextVar("block", default=None)


@contextmanager
def kept(
    path: Path, writer: str, more: Mapping[str, Any] | None = None, own: bool = False
) -> Iterator[None]:
    """Events of this block go into the chain; written when the block ends. ``more``: fields that
    each of them gets. ``own``: only those of this task and of what it began, where others write
    other chains at the same time. In a thread, because an fsync may take long and a server must
    not wait."""
    events: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = QueueHandler(events)
    if own:
        _block.set(handler)
        handler.addFilter(lambda record: _block.get() is handler)
    listener = QueueListener(events, ChainHandler(path, writer, more or {}))
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
