"""The most frequent elements of a stream, in bounded memory. Pure.

Space-Saving with its stream summary: Metwally, Agrawal, El Abbadi, "Efficient Computation of
Frequent and Top-k Elements in Data Streams" (2005). With m counters and n elements seen, an
estimate is never too low and at most n / m too high, and every element that came more often than
n / m times has a counter. One element costs constant time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Frequent(Generic[K]):
    """``count`` is at most ``error`` too high, and never too low."""

    key: K
    count: int
    error: int


class SpaceSaving(Generic[K]):
    """Invariant: ``_buckets`` holds each counted key once, under its count, and no empty bucket;
    ``_least`` is the lowest count there."""

    def __init__(self, counters: int) -> None:
        if counters < 1:
            raise ValueError("it takes a counter at least")
        self._counters = counters
        self._counts: dict[K, int] = {}
        self._errors: dict[K, int] = {}
        self._buckets: dict[int, dict[K, None]] = {}
        self._least = 0
        self.seen = 0

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: K) -> None:
        self.seen += 1
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) < self._counters:
                self._least = 1
                self._put(key, 1)
                return
            # The key that came least often, the oldest of these, gives its counter up.
            count = self._least
            evicted = next(iter(self._buckets[count]))
            self._take(evicted, count, count + 1)
            del self._counts[evicted]
            self._errors.pop(evicted, None)
            self._errors[key] = count
        else:
            self._take(key, count, count + 1)
        self._put(key, count + 1)

    def _put(self, key: K, count: int) -> None:
        self._counts[key] = count
        bucket = self._buckets.get(count)
        if bucket is None:
            bucket = self._buckets[count] = {}
        bucket[key] = None

    def _take(self, key: K, count: int, risen: int) -> None:
        """Out of its bucket; ``risen``: the one that it, or its successor, comes to."""
        bucket = self._buckets[count]
        del bucket[key]
        if not bucket:
            del self._buckets[count]
            if count == self._least:
                self._least = risen

    def top(self, k: int) -> list[Frequent[K]]:
        """The most frequent first; equals in the order of their arrival at that count."""
        found: list[Frequent[K]] = []
        for count in sorted(self._buckets, reverse=True):
            for key in self._buckets[count]:
                if len(found) >= k:
                    return found
                found.append(Frequent(key, count, self._errors.get(key, 0)))
        return found
