"""What one conversation may take of an IDC: a huge group must not starve the others. Pure.

A message costs a delivery for each member, in a huge group what is left of that. A conversation may
have so many in a second, and so many messages that are not durable yet; above either its senders
wait, and nobody else's.
"""

from __future__ import annotations

from collections import Counter

from imcore.bucket import Buckets
from imcore.errors import retry_after_ms
from imcore.region.model import Limits

_FULL_RETRY_MS = 100


class ConversationLoad:
    """``huge_above``: groups of more members are read-diffused. What they cost is bounded by how
    they are told (services.im.diffusion), so their messages count, and fewer may be in flight."""

    def __init__(self, limits: Limits, huge_above: int) -> None:
        per_s = limits.conversation_deliveries_per_s
        self._deliveries = Buckets(per_s, 2.0 * per_s)
        self._most = limits.conversation_in_flight
        self._huge_above = huge_above
        self._huge_most = limits.group_in_flight
        self._huge_cost = per_s / limits.group_messages_per_s
        self._in_flight: Counter[str] = Counter()
        self.limited = 0

    def begin(self, conversation: str, members: int, now: float) -> int:
        """0: one more message is in flight, until ``end``. Else it is not, and may be sent again
        after so many ms."""
        huge = members > self._huge_above
        most = min(self._most, self._huge_most) if huge else self._most
        if self._in_flight[conversation] >= most:
            self.limited += 1
            return _FULL_RETRY_MS
        cost = min(members, self._huge_cost) if huge else max(1, members)
        wait_s = self._deliveries.take(conversation, now, cost)
        if wait_s:
            self.limited += 1
            return retry_after_ms(wait_s)
        self._in_flight[conversation] += 1
        return 0

    def end(self, conversation: str) -> None:
        self._in_flight[conversation] -= 1
        if self._in_flight[conversation] <= 0:
            del self._in_flight[conversation]
