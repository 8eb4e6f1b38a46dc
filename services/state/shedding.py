"""Which users' requests an IDC that cannot keep up answers no longer. Pure: seconds come in.

The sign of overload is the time that work waits in the process, not how much of it there is. A
level falls while the least wait of two windows in a row is above the limit, and rises again while
it is not: the least, as in CoDel (K. Nichols and V. Jacobson, "Controlling Queue Delay", 2012), so
that a short pause of the machine sheds nobody. As in WeChat's DAGOR (H. Zhou et al., "Overload
Control for Scaling WeChat Microservices", 2018) the level is one of users, not a chance for each
request: where every second request of everybody fails, hardly anybody gets anything done. The users
take turns.

A turn of the event loop takes all that has come during the one before. At twice of what can be done
each would be twice as long as the last, and who looks at the loop between turns sees too late what
he has let in: acks took 4 s, and 16 s and ever more at three times. So a turn that has lasted for
too long is seen by the requests that it takes, and the level falls before its end.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from services.ports import Backlog

WINDOW_S = 0.25
SHEDDING_S = 0.1  # a window while the level is below 1
TURN_S = 5.0  # after this others are shed
LEVEL_MIN = 0.05
FALLS_TO = 0.8  # of the level, in a window above the limit
RISES_BY = 0.04  # in one below it
FOLD_WINDOW_S, FOLD_RISES_BY = 1.0, 0.2
READS_COUNT = 2.0  # they are cheaper: shed when the level is half as high
READS = frozenset(
    (
        "conversations", "device_keys", "friends", "group_info", "history", "pull", "pulls",
        "read_cursor", "readers", "search", "sync", "typing", "watch",
    )
)  # fmt: skip
BEHIND = "the IDC does not keep up"  # what whoever is shed is told
RETRY_MS = 500  # at level 1; the fewer are served, the later the others come again


class FoldShare:
    """By how far folding is behind the log. What is shed shows at once in how the backlog grows,
    and only much later in how old it is: so the share falls while a backlog that is too old grows,
    and stays while it shrinks."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._records = 0
        self._window_ends = 0.0
        self.level = 1.0

    def look(self, asked: Callable[[], Backlog], now: float) -> None:
        """``asked`` only at the end of a window: it looks at every partition."""
        if now < self._window_ends:
            return
        self._window_ends = now + FOLD_WINDOW_S
        backlog = asked()
        before, self._records = self._records, backlog.records
        if backlog.oldest_s <= self._delay_s:
            self.level = min(1.0, self.level + FOLD_RISES_BY)
        elif backlog.records > before:
            self.level = max(LEVEL_MIN, self.level * FALLS_TO)


class Shedder:
    """``delay_s``: the least wait of a window for the loop, ``fold_delay_s``: the wait for the
    fold, above which the process does not keep up."""

    def __init__(self, delay_s: float, fold_delay_s: float) -> None:
        self._delay_s = delay_s
        self._fold = FoldShare(fold_delay_s)
        self._least = float("inf")  # wait
        self._late = False  # in the last window
        self._window_ends = 0.0
        self._turn_began: float | None = None  # when it was first asked since the last look
        self.level = 1.0  # by the loop alone
        self.shed = 0

    @property
    def share(self) -> float:
        """Of the users whose sends are taken."""
        return min(self.level, self._fold.level)

    def waited(self, seconds: float, backlog: Callable[[], Backlog], now: float) -> None:
        """A look between two turns of the loop, several a window: how late it was."""
        self._turn_began = None
        self._sample(seconds, now)
        self._fold.look(backlog, now)

    def _sample(self, seconds: float, now: float) -> None:
        self._least = min(self._least, seconds)
        if now < self._window_ends:
            return
        late, self._late = self._late, self._least > self._delay_s
        if self._late and late:
            self.level = max(LEVEL_MIN, self.level * FALLS_TO)
        elif not self._late:
            self.level = min(1.0, self.level + RISES_BY)
        self._least = float("inf")
        self._window_ends = now + (WINDOW_S if self.level >= 1.0 else SHEDDING_S)

    def retry_ms(self, uid: str, reads: bool, now: float) -> int:
        """0: it is served. Else it is not, and may be asked for again after so many ms."""
        if self._turn_began is None:
            self._turn_began = now
        elif now - self._turn_began > self._delay_s:
            self._sample(now - self._turn_began, now)
        share = self.share
        if share >= 1.0:
            return 0
        turn = int(now / TURN_S)
        place = zlib.crc32(f"{turn}/{uid}".encode()) / 2**32
        if place < share * (READS_COUNT if reads else 1.0):
            return 0
        self.shed += 1
        return round(RETRY_MS / share)
