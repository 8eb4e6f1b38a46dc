"""Hybrid logical clock: 48 bits of milliseconds, 16 of counter, one integer.

Kulkarni et al., "Logical Physical Clocks" (2014), with two departures that architecture.md asks for
(rule 10): the value is one integer, so that overflow of the counter carries into the
milliseconds, and the physical part is clamped to the median of the IDCs' clocks, so that one
wrong clock cannot drag the order of everybody into the future.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

COUNTER_BITS = 16
CLAMP_MS = 500


def from_ms(ms: int) -> int:
    return ms << COUNTER_BITS


def to_ms(hlc: int) -> int:
    return hlc >> COUNTER_BITS


def median_offset_ms(offsets_ms: Iterable[int]) -> int:
    """The median of peers' clock offsets (own 0 included by the caller); the lower of two middles
    by absolute value, so that two voters never pull each other apart. Empty: 0."""
    ordered = sorted(offsets_ms)
    if not ordered:
        return 0
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return min(ordered[half - 1], ordered[half], key=abs)


class Hlc:
    """One IDC's clock. ``last`` only rises; every op takes ``next(...)``."""

    def __init__(self, last: int = 0, steady_ms: Callable[[], int] | None = None) -> None:
        """``steady_ms``: a clock that never jumps, for ``measured``."""
        self.last = last
        self.median_offset_ms = 0  # of the last measurement
        self._steady_ms = steady_ms
        self._median_ms: int | None = None  # the median clock, less the steady one

    def measured(self, wall_ms: int, median_offset_ms: int) -> None:
        """The median of all IDCs' clocks was so far from the own one just now. It is carried on by
        the steady clock, so that a jump of the own clock is clamped before the next measurement."""
        assert self._steady_ms is not None
        self.median_offset_ms = median_offset_ms
        self._median_ms = wall_ms + median_offset_ms - self._steady_ms()

    def clamped_ms(self, wall_ms: int) -> int:
        """The own clock, held to within CLAMP_MS of the median of all IDCs' clocks."""
        if self._steady_ms is None or self._median_ms is None:
            return wall_ms
        median = self._median_ms + self._steady_ms()
        return max(median - CLAMP_MS, min(median + CLAMP_MS, wall_ms))

    def skewed(self) -> bool:
        """Whether the own clock is so far off that it is being clamped: an alarm."""
        return abs(self.median_offset_ms) > CLAMP_MS

    def next(self, wall_ms: int, seen: int = 0) -> int:
        """An HLC above everything this IDC and the caller's session have seen."""
        self.last = max(from_ms(self.clamped_ms(wall_ms)), self.last + 1, seen + 1)
        return self.last

    def observe(self, hlc: int) -> None:
        """Merge an HLC that came with a mirrored op."""
        if hlc > self.last:
            self.last = hlc
