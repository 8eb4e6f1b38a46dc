"""What is durable and not folded yet, and for how long. Pure: lsns and seconds come in.

An ack waits for the log and not for the KV. Where the KV is the slower one, as at the end of a
network, an IDC that took whatever its log can take would tell receivers ever later, and its acks
would show nothing of it.
"""

from __future__ import annotations

from collections import deque

from services.ports import NO_BACKLOG, Backlog

AWAY_S = 5.0
_MARK_S = 0.1
_MARKS_MAX = 600


class Behind:
    """Of one partition."""

    def __init__(self) -> None:
        self._folded = 0
        self._moved_at = 0.0
        self._ends: deque[tuple[int, float]] = deque()  # where the log ended, and when
        self._apart_s = _MARK_S

    def look(self, end: int, folded: int, now: float) -> Backlog:
        """``end``: the last durable lsn. Nothing also where nothing at all is folded for AWAY_S:
        then the KV is away, and to take less would not help."""
        if folded != self._folded:
            self._folded, self._moved_at = folded, now
        while self._ends and self._ends[0][0] <= folded:
            self._ends.popleft()
        if folded >= end:
            self._moved_at, self._apart_s = now, _MARK_S
            return NO_BACKLOG
        if not self._ends or (now - self._ends[-1][1] >= self._apart_s and end > self._ends[-1][0]):
            self._ends.append((end, now))
            if len(self._ends) > _MARKS_MAX:  # a long outage need not be known so exactly
                self._ends = deque(list(self._ends)[::2])
                self._apart_s *= 2
        if now - self._moved_at >= AWAY_S:
            return NO_BACKLOG
        return Backlog(now - self._ends[0][1], end - folded)
