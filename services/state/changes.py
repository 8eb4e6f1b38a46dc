"""Whose sessions have changed lately, for those who keep something up to date by that. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import islice


class Changes:
    """``kept``: more of them at a time than are found one by one in less time than all anew.
    ``version`` rises with each."""

    def __init__(self, kept: int) -> None:
        self.version = 0
        self._users: deque[str] = deque(maxlen=kept)

    def note(self, uid: str) -> None:
        self.version += 1
        self._users.append(uid)

    def since(self, version: int) -> Collection[str] | None:
        """Each user once. None: too many to be known."""
        count = self.version - version
        if count > len(self._users):
            return None
        return dict.fromkeys(islice(reversed(self._users), count)) if count else ()
