"""A hashed timing wheel: start, move and stop a timer in constant time. Pure.

G. Varghese and A. Lauck, "Hashed and Hierarchical Timing Wheels" (1987), scheme 6: one slot a
tick, a timer further away than the wheel is long waits for as many rounds.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class TimingWheel(Generic[Key]):
    """Timers by key; scheduling a key again moves its timer. ``now`` counts ticks from 0."""

    def __init__(self, slots: int = 256) -> None:
        if slots < 2:
            raise ValueError(f"a wheel needs at least 2 slots, not {slots}")
        self._slots: list[dict[Key, int]] = [{} for _ in range(slots)]  # key -> rounds left
        self._at: dict[Key, int] = {}
        self.now = 0

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: Key) -> bool:
        return key in self._at

    def schedule(self, key: Key, after_ticks: int) -> None:
        """Expire ``key`` in the ``after_ticks``-th tick from now (at least 1)."""
        self.cancel(key)
        after = max(1, after_ticks)
        slot = (self.now + after) % len(self._slots)
        self._slots[slot][key] = (after - 1) // len(self._slots)
        self._at[key] = slot

    def cancel(self, key: Key) -> bool:
        """Whether the timer was running."""
        slot = self._at.pop(key, None)
        if slot is None:
            return False
        del self._slots[slot][key]
        return True

    def advance(self, ticks: int = 1) -> list[Key]:
        """Keys that expire in these ticks, in tick order."""
        expired: list[Key] = []
        for _ in range(ticks):
            self.now += 1
            slot = self._slots[self.now % len(self._slots)]
            due = [key for key, rounds in slot.items() if rounds == 0]
            for key in due:
                del slot[key]
                del self._at[key]
            for key in slot:
                slot[key] -= 1
            expired.extend(due)
        return expired
