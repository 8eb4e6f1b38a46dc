"""The disk, as the engines see it: blocking calls, made from their threads only.

Injected, so that a simulated disk can take its place. The real one has the hooks of the fault
API: ``faults.full`` and ``faults.fsync_delay_ms`` may be set at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from imcore.errors import BadInput, DiskFull, OutcomeUnknown, Unavailable

PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # they say nothing of what is stored


@dataclass(slots=True)
class DiskFaults:
    full: bool = False
    fsync_delay_ms: int = 0


class File(Protocol):
    """A file open for append. ``size`` is where the next append goes."""

    size: int

    def append(self, data: bytes) -> None:
        """Raises DiskFull or OutcomeUnknown; part of the data may then be in the file."""
        ...

    def sync(self) -> None:
        """What was appended survives a power loss when this returns. Same errors."""
        ...

    def truncate(self, size: int) -> None: ...

    def close(self) -> None: ...


class Disk(Protocol):
    faults: DiskFaults

    def open(self, path: str) -> File:
        """Makes the file when there is none; appends go to its end."""
        ...

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """Up to ``size`` bytes (-1: the rest). Raises FileNotFoundError, or another OSError that
        names the file."""
        ...

    def list(self, folder: str) -> list[str]:
        """Names, sorted; empty when there is no such folder."""
        ...

    def make_folder(self, folder: str) -> None: ...

    def rename(self, old: str, new: str) -> None: ...

    def remove(self, path: str) -> None: ...

    def remove_folder(self, folder: str) -> None:
        """One that is empty, and synced; another one stays."""
        ...

    def sync_folder(self, folder: str) -> None:
        """Names made, renamed or removed in the folder survive a power loss."""
        ...

    def write_whole(self, path: str, data: bytes) -> None:
        """Replace the file, atomically and durably."""
        ...

    def lock(self, path: str, owner: str) -> File:
        """Hold the file for the life of the result. Raises Unavailable when another holds it."""
        ...


@contextlib.contextmanager
def translated(action: str, path: str) -> Iterator[None]:
    """Raises DiskFull, BadInput or OutcomeUnknown in place of an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"cannot {action} {path}: the disk is full") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise BadInput(f"cannot {action} {path}: {error.strerror}") from error
        raise OutcomeUnknown(f"cannot {action} {path}: {error.strerror}") from error


class RealFile:
    def __init__(self, path: str, fd: int, faults: DiskFaults) -> None:
        self._path = path
        self._fd = fd
        self._faults = faults
        self.size = os.fstat(fd).st_size

    def append(self, data: bytes) -> None:
        if self._faults.full:
            raise DiskFull(f"cannot write {self._path}: the disk is full (injected fault)")
        with translated("write", self._path):
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._fd, rest, self.size)
                self.size += written
                rest = rest[written:]

    def sync(self) -> None:
        if self._faults.fsync_delay_ms:
            time.sleep(self._faults.fsync_delay_ms / 1000)
        with translated("sync", self._path):
            os.fdatasync(self._fd)

    def truncate(self, size: int) -> None:
        with translated("truncate", self._path):
            os.ftruncate(self._fd, size)
            self.size = size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RealDisk:
    def __init__(self, faults: DiskFaults | None = None) -> None:
        self.faults = faults or DiskFaults()

    def open(self, path: str) -> RealFile:
        with translated("open", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            return RealFile(path, fd, self.faults)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        with open(path, "rb") as file:
            file.seek(offset)
            try:
                return file.read(size)
            except OSError as error:  # of an open file it says no name
                raise OSError(error.errno, error.strerror, path) from error

    def list(self, folder: str) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except FileNotFoundError:
            return []

    def make_folder(self, folder: str) -> None:
        """Parents too; each new name is synced, or a power loss could take the whole folder."""
        if os.path.isdir(folder):
            return
        parent = os.path.dirname(folder) or "."
        self.make_folder(parent)
        with translated("make", folder):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            self.sync_folder(parent)

    def rename(self, old: str, new: str) -> None:
        with translated("rename", old):
            os.rename(old, new)

    def remove(self, path: str) -> None:
        with translated("remove", path), contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_folder(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(folder)

    def sync_folder(self, folder: str) -> None:
        with translated("sync", folder):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def write_whole(self, path: str, data: bytes) -> None:
        new = path + ".new"
        file = self.open(new)
        try:
            file.truncate(0)
            file.append(data)
            file.sync()
        finally:
            file.close()
        self.rename(new, path)
        self.sync_folder(os.path.dirname(path) or ".")

    def lock(self, path: str, owner: str) -> RealFile:
        file = self.open(path)
        try:
            fcntl.flock(file._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise Unavailable(
                f"{owner} is in use by another process (it holds {path}); stop that one first"
            ) from error
        return file
