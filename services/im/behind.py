"""How long what is durable has waited to be folded. Pure: lsns and seconds come in.

An ack waits for the log and not for the KV. Where the KV is the slower one, as at the end of a
network, an IDC that took whatever its log can take would tell receivers ever later, and its acks
would show nothing of it.
"""

from __future__ import annotations

AWAY_S = 5.0


class Behind:
    """Of one partition."""

    def __init__(self) -> None:
        self._folded = self._awaited = 0
        self._moved_at = self._since = 0.0

    def look(self, end: int, folded: int, now: float) -> float:
        """Seconds that a record has waited at least. ``end``: the last durable lsn. 0 also where
        nothing at all is folded for AWAY_S: then the KV is away, and to take less would not help.
        """
        if folded != self._folded:
            self._folded, self._moved_at = folded, now
        if folded >= self._awaited:
            self._awaited, self._since = end, now
        if folded >= end:
            self._moved_at = now
            return 0.0
        return now - self._since if now - self._moved_at < AWAY_S else 0.0
