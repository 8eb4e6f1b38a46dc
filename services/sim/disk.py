"""A machine's disk in a scratch folder: files are real, what of them survives is simulated.

A process that crashes loses nothing that it wrote: the kernel has it. A machine that loses power
keeps what was synced, and of the rest an unforeseeable part: appended bytes up to some length (the
tail may be torn anywhere), and of names made, renamed or removed since their folder was synced a
first part. The KV's file is LMDB's own; it is told that the machine has booted anew, and goes back
to its last sync as after a real power loss (services.engines.lmdb_steady).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

from services.engines.disk import DiskFaults, RealDisk, RealFile


class SimFile(RealFile):
    def __init__(self, disk: SimDisk, path: str, fd: int) -> None:
        super().__init__(path, fd, disk.faults)
        self._disk = disk
        self.path = path

    def sync(self) -> None:
        self._disk.synced[self.path] = self.size

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self._disk.synced[self.path] = min(size, self._disk.synced.get(self.path, 0))


class SimDisk(RealDisk):
    """``synced``: by path, how much survives; a file that is not named there is safe whole."""

    def __init__(self, root: Path, seed: str) -> None:
        super().__init__(DiskFaults())
        self.root = root
        self.rng = random.Random(f"disk {seed}")
        self.synced: dict[str, int] = {}
        self._names: list[tuple[str, str, str, bytes | None]] = []  # not synced: kind, old, new
        self._open: list[SimFile] = []
        self._boots = 0

    # -------------------------------------------------------------------------------- Disk

    def open(self, path: str) -> SimFile:
        new = not os.path.exists(path)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if new:
            self.synced[path] = 0
            self._names.append(("make", path, path, None))
        file = SimFile(self, path, fd)
        self._open = [each for each in self._open if each._fd >= 0]
        self._open.append(file)
        return file

    def rename(self, old: str, new: str) -> None:
        replaced = Path(new).read_bytes() if os.path.isfile(new) else None
        super().rename(old, new)
        size = self.synced.pop(old, None)
        self.synced.pop(new, None)
        if size is not None:
            self.synced[new] = size
        for file in self._open:
            if file.path == old:
                file.path = new
        self._names.append(("rename", old, new, replaced))

    def remove(self, path: str) -> None:
        held = Path(path).read_bytes() if os.path.isfile(path) else None
        super().remove(path)
        if held is not None:
            self.synced.pop(path, None)
            self._names.append(("remove", path, path, held))

    def make_folder(self, folder: str) -> None:
        os.makedirs(folder, 0o700, exist_ok=True)

    def sync_folder(self, folder: str) -> None:
        self._names = [each for each in self._names if os.path.dirname(each[2]) != folder]

    def lock(self, path: str, owner: str) -> RealFile:
        file = super().lock(path, owner)
        self.synced.pop(path, None)
        return file

    # ------------------------------------------------------------------------------- faults

    def crashed(self) -> None:
        """The process is gone, and the machine runs on."""
        for file in self._open:
            file.close()
        self._open = []

    def lost_power(self) -> None:
        """The machine is gone; what it finds on its disk when it comes back is decided now."""
        self.crashed()
        kept = self.rng.randint(0, len(self._names))
        undone, self._names = self._names[kept:], []
        for kind, old, new, content in reversed(undone):
            if kind == "make":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
                self.synced.pop(new, None)
            elif kind == "rename":
                with contextlib.suppress(FileNotFoundError):
                    os.rename(new, old)
                    self.synced[old] = self.synced.pop(new, os.path.getsize(old))
                if content is not None:
                    Path(new).write_bytes(content)
            elif content is not None:
                Path(new).write_bytes(content)
        for path, size in sorted(self.synced.items()):
            with contextlib.suppress(FileNotFoundError):
                there = os.path.getsize(path)
                if there > size:
                    os.truncate(path, self.rng.randint(size, there))
        self.synced = {}
        self._boots += 1
        for running in sorted(self.root.rglob("running")):
            running.write_text(
                json.dumps({"machine_boot": f"boot {self._boots} of the simulation"})
            )

    def wiped(self) -> None:
        """Everything on it is gone."""
        self.crashed()
        self.synced, self._names = {}, []
        shutil.rmtree(self.root, ignore_errors=True)

    def flip(self) -> str:
        """One bit of what a log holds, somewhere; the file's name, empty when there is none."""
        files = [each for each in sorted(self.root.rglob("*.seg")) if each.stat().st_size > 200]
        if not files:
            return ""
        path = self.rng.choice(files)
        data = bytearray(path.read_bytes())
        data[self.rng.randrange(100, len(data))] ^= 1 << self.rng.randrange(8)
        path.write_bytes(bytes(data))
        return str(path.relative_to(self.root))
