"""Looks how late the event loop comes to what is due (everything else waits as long), and how far
folding is behind. The shell of ``shedding``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from imcore.runtime import Clock
from services.ports import Backlog
from services.state.shedding import Shedder

SAMPLE_S = 0.04  # several a window; each wakes a process that has nothing else to do


async def watch_delay(
    shedder: Shedder,
    clock: Clock,
    backlog: Callable[[], Backlog],
    every_s: float = SAMPLE_S,
) -> None:
    """Until cancelled. ``backlog``: see ``Im``."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every_s
        await asyncio.sleep(every_s)
        shedder.waited(max(0.0, loop.time() - due), backlog, clock.now())
