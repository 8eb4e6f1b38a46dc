"""Which sessions have changed since somebody asked last. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable


class Dirty:
    """Nothing is kept before it is asked for the first time."""

    def __init__(self) -> None:
        self._sessions: dict[str, None] | None = None

    def note(self, sessions: Iterable[str]) -> None:
        if self._sessions is not None:
            self._sessions |= dict.fromkeys(sessions)

    def take(self) -> Collection[str] | None:
        """In the order in which they have changed. None, at first: all of them may have."""
        found, self._sessions = self._sessions, {}
        return found
