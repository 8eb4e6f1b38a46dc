"""How many may come in, and when the others should come again. Pure: seconds come in.

After the loss of an IDC, or when one is back, all of its clients come at once. Letting them in at a
rate is half of it: those who are turned away must not come back together either. So each is named a
time of its own, one slot behind the one before. Whoever comes takes what there is, with or without
an appointment: a slot that nobody uses is not lost.
"""

from __future__ import annotations

from imcore.bucket import Bucket

WAIT_MAX_S = 600.0  # nobody is told to wait for longer; the appointments begin anew


class Doors:
    """``per_s`` may come in, ``burst`` at once."""

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._bucket = Bucket(per_s, burst, now)
        self._promised = now  # the last slot that was given out
        self.turned_away = 0

    def enter(self, now: float) -> int:
        """0: come in. Else the milliseconds after which there is room."""
        if self._bucket.is_full(now):
            self._promised = now  # those who were told a time came, or never will
        wait_s = self._bucket.take(now)
        if not wait_s:
            return 0
        self.turned_away += 1
        self._promised = max(self._promised, now + wait_s) + 1 / self._per_s
        if self._promised - now > WAIT_MAX_S:
            self._promised = now + wait_s
        return max(1, round((self._promised - now) * 1000))
