"""How long acks took over the last seconds, from a request's arrival to its answer. Pure.

Kept as counts in buckets a 16th of an octave wide (4 %), by the second: a few hundred of them,
whatever the rate.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import NamedTuple

WINDOW_S = 10
_PER_OCTAVE = 16
_UNIT_S = 1e-6


class Acks(NamedTuple):
    """``p50_ms``, ``p99_ms``: upper ends of their buckets; None: there were none."""

    sends: int
    p50_ms: float | None
    p99_ms: float | None


class AckLatency:
    def __init__(self) -> None:
        self._seconds: deque[tuple[int, Counter[int]]] = deque()

    def add(self, now: float, took_s: float) -> None:
        """``now``: seconds of a steady clock."""
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, Counter()))
            self._forget(second)
        self._seconds[-1][1][_bucket(took_s)] += 1

    def seen(self, now: float) -> Acks:
        return acks_of(self.buckets(now))

    def buckets(self, now: float) -> Counter[int]:
        """How many took as long as each bucket says."""
        self._forget(int(now))
        buckets: Counter[int] = Counter()
        for _, counts in self._seconds:
            buckets += counts
        return buckets

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - WINDOW_S:
            self._seconds.popleft()


def acks_of(buckets: Counter[int]) -> Acks:
    count = buckets.total()
    if not count:
        return Acks(0, None, None)
    return Acks(count, _rank(buckets, 0.50, count), _rank(buckets, 0.99, count))


def _bucket(took_s: float) -> int:
    return int(math.log2(max(1.0, took_s / _UNIT_S)) * _PER_OCTAVE)


def _rank(buckets: Counter[int], share: float, count: int) -> float:
    """Nearest rank, ms."""
    left = math.ceil(share * count)
    for bucket in sorted(buckets):
        left -= buckets[bucket]
        if left <= 0:
            return round(2 ** ((bucket + 1) / _PER_OCTAVE) * _UNIT_S * 1000, 3)
    raise AssertionError("the counts do not add up")
