"""Work for thousands of sessions, cut into turns between which the loop serves everybody else.

In one go, a push to 10,000 sessions would hold up whatever comes meanwhile for a fifth of a second.
A turn takes about a millisecond, and then nothing of the kind is done for ``_SHARE`` times as long:
so all huge groups together take a quarter of the loop. Only when so much waits that it would be
late does it take more.

What a turn takes is counted until its bytes are the kernel's: a gateway writes at the end of the
turn, and uvloop after that, which is nine tenths of the work.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from imcore.runtime import Clock

TURN_S = 0.001
_SHARE = 3.0
_LATE = 4_000  # pieces: 64,000 sessions
_LOOKS = 8
_PIECES_MAX = 64


class Pace:
    """Of work whose pieces are alike: how many of them are one turn. Pure."""

    __slots__ = ("_each", "pieces")

    def __init__(self) -> None:
        self.pieces = 1
        self._each: deque[float] = deque(maxlen=_LOOKS)  # seconds a piece, of the last turns

    def took(self, seconds: float) -> float:
        """The turn's pieces took so long. How long there is nothing to be done of it now."""
        # Others may have been served before the time was taken, and that need not be made up for:
        # so the cheapest of some turns is what a piece takes.
        self._each.append(seconds / self.pieces)
        each = min(self._each)
        pause_s = _SHARE * each * self.pieces
        fit = int(TURN_S / each) if each > 0 else _PIECES_MAX
        self.pieces = max(1, min(fit, 2 * self.pieces, _PIECES_MAX))
        return pause_s


class Spread:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: deque[tuple[deque[Callable[[], None]], Pace]] = deque()
        self._pieces = 0  # that wait
        self._going = False

    def __len__(self) -> int:
        return self._pieces

    def add(self, work: Iterable[Callable[[], None]]) -> None:
        """In this order, behind what waits. The first piece at once when nothing was done lately.
        The pieces of one call are alike."""
        if pieces := deque(work):
            self._waiting.append((pieces, Pace()))
            self._pieces += len(pieces)
            if not self._going:
                self._going = True
                self._turn()

    def _turn(self) -> None:
        if not self._waiting:
            self._going = False
            return
        pieces, pace = self._waiting[0]
        loop, begun = asyncio.get_running_loop(), self._clock.now()
        # Behind the gateways' flush, which is asked for by the first push; then behind the writes.
        try:
            for _ in range(min(pace.pieces, len(pieces))):
                self._pieces -= 1
                pieces.popleft()()
        finally:
            if not pieces:
                self._waiting.popleft()
            loop.call_soon(loop.call_soon, self._written, begun, pace)

    def _written(self, begun: float, pace: Pace) -> None:
        pause_s = pace.took(self._clock.now() - begun)
        if self._pieces > _LATE:
            pause_s = 0.0
        asyncio.get_running_loop().call_later(pause_s, self._turn)
