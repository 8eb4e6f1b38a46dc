"""Which partitions of a copy that something else fills stand still below their origin. Pure."""

from __future__ import annotations


class Gaps:
    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._held: dict[int, int] = {}
        self._since: dict[int, float] = {}  # when it was first seen, or has last moved

    def look(
        self, held: dict[int, int], ends: dict[int, int], now: float
    ) -> tuple[dict[int, int], bool]:
        """Lsns, by partition. Returns the ends of those that have stood still below them for longer
        than the bound, and whether the copy is whole or has grown since the last look."""
        stay: dict[int, int] = {}
        grown, whole = False, True
        for partition, end in ends.items():
            has = held[partition]
            moved = has > self._held.get(partition, has)
            grown |= moved
            whole &= has >= end
            if has >= end:
                self._since.pop(partition, None)
            elif moved or partition not in self._since:
                self._since[partition] = now
            elif now - self._since[partition] > self._bound_s:
                stay[partition] = end
            self._held[partition] = has
        return stay, grown or whole
