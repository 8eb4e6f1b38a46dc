"""The time by which a node judges what others have dated: client tokens and resume tokens."""

from __future__ import annotations

from imcore.hlc import Hlc
from imcore.runtime import Clock


class MedianClock:
    """The machine's wall clock, held to the median of the IDCs' clocks (``Hlc.clamped_ms``): a
    wrong clock in one IDC must not turn away every client that comes to it, whose token is good
    everywhere else. Before the first measurement it is the machine's clock as it is."""

    def __init__(self, clock: Clock, hlc: Hlc) -> None:
        self._clock = clock
        self._hlc = hlc

    def wall_ms(self) -> int:
        return self._hlc.clamped_ms(self._clock.wall_ms())

    def now(self) -> float:
        return self._clock.now()

    def cpu(self) -> float:
        return self._clock.cpu()
