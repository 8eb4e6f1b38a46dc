"""``python -m imctl.drill.janitor FOLDER``: undoes a drill's faults when the drill cannot.

Started by each drill in a session of its own. While the drill lives it undoes faults past their
expiry; once the drill is gone, however it ended, it undoes what is left, and ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from pathlib import Path

from imcore.errors import ImError
from imcore.runtime import SystemClock
from imctl.drill.breakage import Breakage
from imctl.drill.faults import Fault, FaultBook, RunLock, expired
from imctl.target.opening import opened
from imctl.traffic import Control

POLL_S = 0.5
TRIES = 5
AGAIN_S = 5.0
LOG = "drill-janitor.log"

log = logging.getLogger("imctl.drill")


def watch(folder: Path) -> None:
    clock, book, lock = SystemClock(), FaultBook(folder), RunLock(folder)
    while not lock.take():
        if old := expired(book.read().faults, clock.wall_ms()):
            log.warning("%d faults are past their expiry.", len(old))
            _undo(folder, old)
        time.sleep(POLL_S)
    try:
        for _ in range(TRIES):
            if not book.read().run:
                return
            log.warning("The drill %s is gone; what is left of it is undone.", book.read().drill)
            if not _undo(folder, None):
                return
            time.sleep(AGAIN_S)
    finally:
        lock.release()


def _undo(folder: Path, faults: list[Fault] | None) -> list[str]:
    """Returns what could not be undone."""

    async def work() -> list[str]:
        target = opened(folder)
        async with Control(target, SystemClock(), random.Random()) as control:
            breakage = Breakage.of(target, control, SystemClock(), 0)
            problems = await breakage.undo_all(faults)
        for note in breakage.notes:
            log.warning("%s", note)
        return problems

    try:
        problems = asyncio.run(work())
    except ImError as error:
        problems = [str(error)]
    for problem in problems:
        log.error("%s", problem)
    return problems


def main() -> None:
    folder = Path(sys.argv[1])
    logging.basicConfig(filename=folder / LOG, format="%(asctime)s %(message)s", level="INFO")
    watch(folder)


if __name__ == "__main__":
    main()
