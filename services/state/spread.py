"""Work for thousands of sessions, cut into slices between which the loop serves everybody else.

In one go, a push to 10,000 sessions would hold up whatever comes meanwhile for a fifth of a second.
A slice takes about a millisecond, and then nothing is sliced for ``_SHARE`` times as long: so all
huge groups together take a quarter of the loop. Only when so much waits that it would be late does
it take more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from imcore.runtime import Clock

_SHARE = 3.0
_LATE = 1_000  # slices: 64,000 pushes


class Spread:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._going = False

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, work: Iterable[Callable[[], None]]) -> None:
        """In this order, behind what waits. The first one at once when nothing does."""
        self._waiting.extend(work)
        if not self._going and self._waiting:
            self._going = True
            self._next()

    def _next(self) -> None:
        begun = self._clock.now()
        try:
            self._waiting.popleft()()
        finally:
            if self._waiting:
                late = len(self._waiting) > _LATE
                pause_s = 0.0 if late else _SHARE * (self._clock.now() - begun)
                asyncio.get_running_loop().call_later(pause_s, self._next)
            else:
                self._going = False
