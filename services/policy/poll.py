"""What lies under some prefixes in every registry, polled: so a silent registry is known to be
silent. One poller a process: each poll is a call to every registry.

A watch would be quicker by half a poll, but a half-open one looks like a registry where nothing
happens, and liveness is the very question here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from imcore.errors import ImError
from imcore.runtime import Clock
from services.ports import Registry, Versioned

POLL_S = 0.3
ANSWER_S = 1.0
# Leases last 2 s; an answer that is older says nothing of what is alive now.
FRESH_S = 2.0


class Poller:
    """``start`` to poll until ``stop``, or ``poll_all`` for once."""

    def __init__(self, registries: Mapping[str, Registry], clock: Clock, *prefixes: bytes) -> None:
        self._registries = dict(registries)
        self._prefixes = prefixes
        self._clock = clock
        self._last: dict[str, tuple[float, dict[bytes, list[Versioned]]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(name)) for name in self._registries]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def entries(self, name: str, prefix: bytes) -> list[Versioned]:
        """The last answer of this registry, or nothing when it is too old to count."""
        found = self._last.get(name)
        if found is None or self._clock.now() - found[0] > FRESH_S:
            return []
        return found[1][prefix]

    def answers(self, name: str) -> bool:
        found = self._last.get(name)
        return found is not None and self._clock.now() - found[0] <= FRESH_S

    def answered_at(self, name: str) -> float | None:
        found = self._last.get(name)
        return found[0] if found else None

    async def poll_all(self) -> None:
        await asyncio.gather(*map(self._poll, self._registries))

    async def _run(self, name: str) -> None:
        while True:
            await self._poll(name)
            await asyncio.sleep(POLL_S)

    async def _poll(self, name: str) -> None:
        asked = self._clock.now()  # what is alive is known as of the question, not the answer
        try:
            async with asyncio.timeout(ANSWER_S):
                rows = await self._registries[name].range(*self._prefixes)
        except (ImError, TimeoutError):
            return
        under = {each: [row for row in rows if row.key.startswith(each)] for each in self._prefixes}
        self._last[name] = (asked, under)
