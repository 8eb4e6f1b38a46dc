"""How much of a loop's CPU time one peer may cost. Pure: seconds come in.

A loop serves many, and some bytes are dear to read; their senders know which. Counting them misses
the next kind, so what is bounded is what they cost.
"""

from __future__ import annotations

CPU_SHARE = 0.25  # of each second that passes


class Work:
    """What may be spent on one peer, in seconds: CPU_SHARE of each that passes, ``at_once`` at
    most, which there is at first. ``left``: at least so much there is still."""

    __slots__ = ("_at", "_at_once", "left")

    def __init__(self, now: float, at_once: float = 1.0) -> None:
        self.left = self._at_once = at_once
        self._at = now

    def empty(self, now: float) -> bool:
        self.left = min(self._at_once, self.left + CPU_SHARE * (now - self._at))
        self._at = now
        return self.left <= 0.0

    def pay(self, seconds: float) -> None:
        self.left -= seconds
