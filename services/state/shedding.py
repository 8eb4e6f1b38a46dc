"""Which users' requests an IDC that cannot keep up answers no longer. Pure: seconds come in.

The sign of overload is the time that work waits in the process, not how much of it there is. A
level falls while the least wait of two windows in a row is above the limit, and rises again while
it is not: the least, as in CoDel (K. Nichols and V. Jacobson, "Controlling Queue Delay", 2012), so
that one pause of the machine sheds nobody. As in WeChat's DAGOR (H. Zhou et al., "Overload Control
for Scaling WeChat Microservices", 2018) the level is one of users, not a chance for each request:
where every second request of everybody fails, hardly anybody gets anything done. The users take
turns.
"""

from __future__ import annotations

import zlib

WINDOW_S = 0.25
TURN_S = 5.0  # after this others are shed
LEVEL_MIN = 0.05
FALLS_TO = 0.8  # of the level, in a window above the limit
RISES_BY = 0.1  # in one below it
READS = 2.0  # reads are cheaper: shed when the level is half as high
RETRY_MS = 500  # at level 1; the fewer are served, the later the others come again


class Shedder:
    """``delay_s``: the least wait of a window, above which the process does not keep up."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._least = float("inf")
        self._late = False  # in the last window
        self._window_ends = 0.0
        self.level = 1.0  # share of the users whose sends are taken
        self.shed = 0

    def waited(self, seconds: float, now: float) -> None:
        """A sample of how long work has to wait now; several a window."""
        self._least = min(self._least, seconds)
        if now < self._window_ends:
            return
        late, self._late = self._late, self._least > self._delay_s
        if self._late and late:
            self.level = max(LEVEL_MIN, self.level * FALLS_TO)
        elif not self._late:
            self.level = min(1.0, self.level + RISES_BY)
        self._least = float("inf")
        self._window_ends = now + WINDOW_S

    def retry_ms(self, uid: str, reads: bool, now: float) -> int:
        """0: it is served. Else it is not, and may be asked for again after so many ms."""
        if self.level >= 1.0:
            return 0
        turn = int(now / TURN_S)
        place = zlib.crc32(f"{turn}/{uid}".encode()) / 2**32
        if place < self.level * (READS if reads else 1.0):
            return 0
        self.shed += 1
        return round(RETRY_MS / self.level)
