"""Looks how late the event loop comes to what is due: as long does everything else wait too. The
shell of ``shedding``."""

from __future__ import annotations

import asyncio

from imcore.runtime import Clock
from services.state.shedding import Shedder

SAMPLE_S = 0.02


async def watch_delay(shedder: Shedder, clock: Clock) -> None:
    """Until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + SAMPLE_S
        await asyncio.sleep(SAMPLE_S)
        shedder.waited(max(0.0, loop.time() - due), clock.now())
