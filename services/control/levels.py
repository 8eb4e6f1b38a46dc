"""Which level of ops the region writes: the highest that the programs of all IDCs fold.

Kept under the CASPaxos key ``level``, and only ever raised: what is written at it stays in the
logs. So a rolling upgrade needs nobody who ends it, and a new kind of op begins when the last IDC
has the new program. Retired IDCs are not waited for: one that comes back with an old program waits
in front of what it cannot fold (``imcore.levels``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from imcore.errors import ImError
from imcore.levels import FIRST, LEVEL
from services.control.caspaxos import Proposer
from services.control.evidence import IdcFacts
from services.control.rules import is_fresh

log = logging.getLogger("im.control")

LEVEL_KEY = "level"
EACH_S = 2.0


def agreed(
    wanted: Sequence[str], heard: Mapping[str, IdcFacts], now_ms: int, age_ms_max: int
) -> int:
    """What all the wanted IDCs said lately that they fold; 0 while one has not said so."""
    said = [
        facts.level
        for name in wanted
        if (facts := heard.get(name)) and is_fresh(now_ms - facts.at_ms, age_ms_max)
    ]
    return min(said, default=0) if len(said) == len(wanted) else 0


def _raised(level: int, current: bytes | None) -> bytes:
    return str(max(level, _number(current))).encode()


def _number(value: bytes | None) -> int:
    """Raises ValueError."""
    return int(value) if value else FIRST


class Levels:
    """``agreed``: see there. ``committed``: what may be written here; ``alarm``: what is above this
    program."""

    def __init__(self, proposer: Proposer, agreed: Callable[[], int]) -> None:
        self.committed = FIRST
        self.alarm: str | None = None
        self._proposer = proposer
        self._agreed = agreed

    async def run(self) -> None:
        """Until all that this program can write may be written, and it knows so."""
        while True:
            if await self.look() and self.committed >= LEVEL:
                return
            await asyncio.sleep(EACH_S)

    async def look(self) -> bool:
        """False: no majority told."""
        try:
            value, _ = await self._proposer.read(LEVEL_KEY)
            level, agreed = _number(value), min(self._agreed(), LEVEL)
            if agreed > level:
                value = await self._proposer.change(LEVEL_KEY, lambda now: _raised(agreed, now))
                level = _number(value)
                log.info("all IDCs fold ops of level %d: they are written from now on", level)
        except ImError as error:
            log.debug("the level of ops is not known: %s", error)
            return False
        except ValueError as error:
            self.alarm = f"the level of ops in the registries is unreadable: {error}"
            return False
        self.committed = level
        self.alarm = None
        if level > LEVEL:
            self.alarm = (
                f"the region writes ops of level {level} and this program folds {LEVEL}: "
                "start the newer one here"
            )
        return True
