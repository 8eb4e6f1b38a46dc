"""The hottest conversations, groups and KV keys of the last minute. Pure."""

from __future__ import annotations

import random

from imcore.words import is_group
from services.metrics.topk import Frequent, SpaceSaving

WINDOW_S = 60.0
COUNTERS = 512  # of each kind: what makes up 1 in 512 of a minute's traffic cannot be missed
MESSAGES_ONE_IN = 4  # of so many messages one is counted, for all of them
KEYS_ONE_IN = 16  # of the keys that are read

CONVERSATION, GROUP, KEY = "conversation", "group", "key"
KINDS = (CONVERSATION, GROUP, KEY)


class _Sample:
    """Picks one in so many. Not each n-th: what is read in pairs would be seen by halves."""

    def __init__(self, one_in: int, rng: random.Random) -> None:
        self.one_in = one_in
        self._rng = rng
        self._left = self._gap()

    def _gap(self) -> int:
        return self._rng.randrange(1, 2 * self.one_in)  # ``one_in`` on the average

    def take(self) -> bool:
        self._left -= 1
        if self._left:
            return False
        self._left = self._gap()
        return True


class Hot:
    """Counts one window while it shows the one before, so that a figure is always of a whole
    window and what has cooled down is gone after two."""

    def __init__(
        self,
        rng: random.Random,
        messages_one_in: int = MESSAGES_ONE_IN,
        keys_one_in: int = KEYS_ONE_IN,
    ) -> None:
        self._messages = _Sample(messages_one_in, rng)
        self._keys = _Sample(keys_one_in, rng)
        self._since = 0.0
        self._counting = self._fresh()
        self._shown = self._fresh()

    @staticmethod
    def _fresh() -> dict[str, SpaceSaving[str | bytes]]:
        return {kind: SpaceSaving(COUNTERS) for kind in KINDS}

    def messages(self, conversation: str, count: int) -> None:
        """So many entries of a conversation were folded here."""
        counting = self._counting[CONVERSATION]
        groups = self._counting[GROUP] if is_group(conversation) else None
        for _ in range(count):
            if not self._messages.take():
                continue
            counting.add(conversation)
            if groups is not None:
                groups.add(conversation)

    def read(self, key: bytes) -> None:
        """A key of the KV was read."""
        if self._keys.take():
            self._counting[KEY].add(key)

    def turn(self, now: float) -> None:
        """Called about once a second; ``now`` in seconds."""
        if now - self._since >= WINDOW_S:
            self._since = now
            self._shown, self._counting = self._counting, self._fresh()

    def top(self, kind: str, k: int) -> list[Frequent[str | bytes]]:
        """Of the last whole window, about how many messages or reads."""
        times = (self._keys if kind == KEY else self._messages).one_in
        return [
            Frequent(row.key, row.count * times, row.error * times)
            for row in self._shown[kind].top(k)
        ]
