"""The hottest conversations, groups and KV keys of the last minute. Pure."""

from __future__ import annotations

from imcore.words import is_group
from services.metrics.topk import Frequent, SpaceSaving

WINDOW_S = 60.0
COUNTERS = 512  # of each kind: what makes up 1 in 512 of a minute's traffic cannot be missed
KEYS_ONE_IN = 16  # of the keys that are read one is counted, for sixteen

CONVERSATION, GROUP, KEY = "conversation", "group", "key"
KINDS = (CONVERSATION, GROUP, KEY)


class Hot:
    """Counts one window while it shows the one before, so that a figure is always of a whole
    window and what has cooled down is gone after two."""

    def __init__(self) -> None:
        self._since = 0.0
        self._counting = self._fresh()
        self._shown = self._fresh()
        self._skipped = 0

    @staticmethod
    def _fresh() -> dict[str, SpaceSaving[str | bytes]]:
        return {kind: SpaceSaving(COUNTERS) for kind in KINDS}

    def messages(self, conversation: str, count: int) -> None:
        """So many entries of a conversation were folded here."""
        counting = self._counting[CONVERSATION]
        groups = self._counting[GROUP] if is_group(conversation) else None
        for _ in range(count):
            counting.add(conversation)
            if groups is not None:
                groups.add(conversation)

    def read(self, key: bytes) -> None:
        """A key of the KV was read."""
        self._skipped += 1
        if self._skipped >= KEYS_ONE_IN:
            self._skipped = 0
            self._counting[KEY].add(key)

    def turn(self, now: float) -> None:
        """Called about once a second; ``now`` in seconds."""
        if now - self._since >= WINDOW_S:
            self._since = now
            self._shown, self._counting = self._counting, self._fresh()

    def top(self, kind: str, k: int) -> list[Frequent[str | bytes]]:
        """Of the last whole window, messages or reads in it."""
        times = KEYS_ONE_IN if kind == KEY else 1
        return [
            Frequent(row.key, row.count * times, row.error * times)
            for row in self._shown[kind].top(k)
        ]
