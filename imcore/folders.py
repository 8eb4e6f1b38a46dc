"""Folders that several commands and processes change."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Those who change it take turns: one would write back what another has taken out. The kernel
    takes the turn back from who is killed. Raises OSError."""
    descriptor = _opened(folder)
    try:
        with contextlib.suppress(OSError):  # a network's file system may lock no folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sync(folder: Path) -> None:
    """Names made, renamed or removed in it survive a power loss. Raises OSError."""
    descriptor = _opened(folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
