"""What the outside world is to the code: clock, randomness. Injected everywhere, so that a
simulation can be in charge of both. Network and disk have ports of their own (services.ports)."""

from __future__ import annotations

import random
import time
from typing import Protocol


class Clock(Protocol):
    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch, as this machine believes it; may jump."""
        ...

    def now(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clocks, with an offset that the fault API may set (a skewed machine)."""

    def __init__(self) -> None:
        self.offset_ms = 0

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.offset_ms

    def now(self) -> float:
        return time.monotonic()


_EPOCH_MS = 1_700_000_000_000


class ManualClock:
    """Virtual time for tests and simulations."""

    def __init__(self) -> None:
        self._now = 0.0
        self.offset_ms = 0

    def wall_ms(self) -> int:
        return _EPOCH_MS + int(self._now * 1000) + self.offset_ms

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


Random = random.Random
