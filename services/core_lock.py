"""Which core serves on a data folder: a file lock for life, and who holds it or waits for it.

Here and not beside the lease (services.node.standby): `imctl` asks it at every start, and what a
node is made of would be much of what a command takes to start.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import NamedTuple

from imcore.errors import Unavailable
from services.engines.disk import Disk, File

log = logging.getLogger("im.node")

LOCK = "core.lock"  # in the data folder; holds the pid and the name of the core that serves
WAITS = "core.standby"  # beside it: the pid of the one that began to stand by last
LOOK_S = 0.05  # whether the folder is free


class Held(NamedTuple):
    """A data folder, until the lock is closed or the process is gone. ``former``: the name of the
    core that held it last, which is gone; empty: none did."""

    lock: File
    former: str


async def hold_folder(folder: Path, disk: Disk, pid: int, name: str) -> Held:
    """Waits until no other core serves on this folder. ``name``: new for each life of a core."""
    path, waits = str(folder / LOCK), False
    while True:
        try:
            lock = disk.lock(path, f"the data folder {folder}")
        except Unavailable:
            if not waits:
                disk.write_whole(str(folder / WAITS), f"{pid}\n".encode())
                log.info("another core serves on %s: this one stands by (pid %d)", folder, pid)
            waits = True
            await asyncio.sleep(LOOK_S)
            continue
        try:
            former = _words(folder)[1:]
            lock.truncate(0)
            lock.append(f"{pid} {name}\n".encode())
        except BaseException:
            lock.close()
            raise
        if waits:
            log.warning("the core that served is gone: this one takes over (pid %d)", pid)
        return Held(lock, *former)


def serving_pid(folder: Path) -> int:
    """The process whose core holds this data folder, or held it last; 0: none did."""
    return int(_words(folder)[0])


def waiting_pid(folder: Path) -> int:
    """The process that began to stand by on this data folder last; 0: none did."""
    try:
        return int((folder / WAITS).read_text())
    except (OSError, ValueError):
        return 0


def _words(folder: Path) -> tuple[str, str]:
    """Pid and name of who holds it, or held it last."""
    try:
        pid, name = (folder / LOCK).read_text().split()
    except (OSError, ValueError):
        return "0", ""
    return (pid, name) if pid.isdecimal() else ("0", "")
