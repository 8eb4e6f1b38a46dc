"""Rates from counters, over the last seconds. Pure."""

from __future__ import annotations

from collections import deque

_WINDOW_S = 5.0


class Rate:
    """Per-second rate of a counter that only rises; ``sample`` is called about once a second."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now: float, count: int) -> None:
        self._samples.append((now, count))
        while now - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()

    def per_second(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end > start else 0.0
