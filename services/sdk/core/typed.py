"""Who types: what is told, and what is shown until it expires. Pure."""

from __future__ import annotations

from collections import OrderedDict

AGAIN_S = 3.0  # a device says it again so often while its user goes on
_TOLD_MAX = 1_000  # conversations
_SEEN_MAX = 1_000  # of (conversation, user); beyond it the one that would end first goes


class TypingTold:
    def __init__(self) -> None:
        self._told: OrderedDict[str, float] = OrderedDict()

    def due(self, conversation: str, now: float) -> bool:
        """Whether the service is to be told; if so it counts as told."""
        told = self._told.get(conversation)
        if told is not None and now - told < AGAIN_S:
            return False
        self._told[conversation] = now
        self._told.move_to_end(conversation)
        if len(self._told) > _TOLD_MAX:
            self._told.popitem(last=False)
        return True

    def sent(self, conversation: str) -> None:
        """A message ends what the others are shown, so that what is typed next is told at once."""
        self._told.pop(conversation, None)


class TypingSeen:
    def __init__(self) -> None:
        self._ends: dict[tuple[str, str], float] = {}

    def heard(self, conversation: str, uid: str, end: float) -> bool:
        """False: it is shown already, and for longer now."""
        new = (conversation, uid) not in self._ends
        if new and len(self._ends) >= _SEEN_MAX:
            del self._ends[min(self._ends, key=self._ends.__getitem__)]
        self._ends[conversation, uid] = end
        return new

    def wrote(self, conversation: str, uid: str) -> bool:
        """What was typed has come: whether it was shown."""
        return self._ends.pop((conversation, uid), None) is not None

    def next_end(self) -> float | None:
        return min(self._ends.values(), default=None)

    def ended(self, now: float) -> list[tuple[str, str]]:
        over = [key for key, end in self._ends.items() if end <= now]
        for key in over:
            del self._ends[key]
        return over
