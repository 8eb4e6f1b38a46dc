"""A disk in memory, without faults of its own: a target damages what lies on it."""

from __future__ import annotations

from services.engines.disk import DiskFaults


class MemoryFile:
    def __init__(self, files: dict[str, bytes], path: str) -> None:
        self._files, self._path = files, path
        files.setdefault(path, b"")

    @property
    def size(self) -> int:
        return len(self._files[self._path])

    @size.setter
    def size(self, value: int) -> None:
        raise AttributeError("it follows from the content")

    def append(self, data: bytes) -> None:
        self._files[self._path] += data

    def sync(self) -> None:
        pass

    def truncate(self, size: int) -> None:
        self._files[self._path] = self._files[self._path][:size]

    def close(self) -> None:
        pass


class MemoryDisk:
    """Disk of ``services.engines.disk``. ``files``: content by path."""

    def __init__(self) -> None:
        self.faults = DiskFaults()
        self.files: dict[str, bytes] = {}

    def open(self, path: str) -> MemoryFile:
        return MemoryFile(self.files, path)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        end = None if size < 0 else offset + size
        return self.files[path][offset:end]

    def list(self, folder: str) -> list[str]:
        prefix = folder + "/"
        return sorted({p[len(prefix) :].split("/")[0] for p in self.files if p.startswith(prefix)})

    def make_folder(self, folder: str) -> None:
        pass

    def rename(self, old: str, new: str) -> None:
        self.files[new] = self.files.pop(old)

    def remove(self, path: str) -> None:
        del self.files[path]

    def remove_folder(self, folder: str) -> None:
        pass

    def sync_folder(self, folder: str) -> None:
        pass

    def write_whole(self, path: str, data: bytes) -> None:
        self.files[path] = bytes(data)

    def lock(self, path: str, owner: str) -> MemoryFile:
        return self.open(path)
