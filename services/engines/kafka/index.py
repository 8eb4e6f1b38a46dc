"""Where the records of a partition lie: a sparse map from lsn to offsets in the topics. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from services.engines.records import EMPTY_END
from services.ports import LogEnd

STEP_BYTES = 256 * 1024
_KEPT_MAX = 32  # of the hints that are written down


class Hint(NamedTuple):
    """Every record above ``end`` lies at or behind ``offsets`` (one a topic); the next one in topic
    number ``source``, unless that has a hole there. ``size``: bytes of all records up to here."""

    end: LogEnd
    offsets: tuple[int, ...]
    source: int
    size: int

    def dump(self) -> list[Any]:
        lsn, chain, epoch = self.end
        return [lsn, chain.hex(), epoch, list(self.offsets), self.source, self.size]


def parse_hint(row: list[Any]) -> Hint:
    lsn, chain, epoch, offsets, source, size = row
    return Hint(LogEnd(lsn, bytes.fromhex(chain), epoch), tuple(offsets), source, size)


class Index:
    """Hints in the order of their lsn; the first one is where the log starts."""

    def __init__(self, first: Hint, step_bytes: int = STEP_BYTES) -> None:
        self._hints = [first]
        self._lsns = [first.end.lsn]
        self._step_bytes = step_bytes

    @property
    def first(self) -> Hint:
        return self._hints[0]

    @property
    def last(self) -> Hint:
        return self._hints[-1]

    def add(self, hint: Hint) -> None:
        """Unless it says hardly more than the last one."""
        last = self._hints[-1]
        far = hint.size - last.size >= self._step_bytes or hint.source != last.source
        if hint.end.lsn > last.end.lsn and far:
            self._append(hint)

    def push(self, hint: Hint) -> None:
        """Whatever it says, if it lies behind the last one."""
        if hint.end.lsn > self._hints[-1].end.lsn:
            self._append(hint)

    def _append(self, hint: Hint) -> None:
        self._hints.append(hint)
        self._lsns.append(hint.end.lsn)

    def before(self, lsn: int) -> Hint:
        """The last hint from which the record of that lsn is found by reading on."""
        return self._hints[max(0, bisect_right(self._lsns, lsn - 1) - 1)]

    def whole(self, ends: Sequence[int]) -> Hint | None:
        """The last hint that lies within topics which end there; None: not even the first does."""
        for hint in reversed(self._hints):
            if all(offset <= end for offset, end in zip(hint.offsets, ends, strict=True)):
                return hint
        return None

    def cut_below(self, lsn: int) -> None:
        """The log now starts at the hint before that lsn."""
        keep = max(0, bisect_right(self._lsns, lsn - 1) - 1)
        del self._hints[:keep], self._lsns[:keep]

    def cut_above(self, lsn: int) -> None:
        keep = max(1, bisect_right(self._lsns, lsn))
        del self._hints[keep:], self._lsns[keep:]

    def kept(self) -> list[Hint]:
        """The first, the last, and some in between."""
        step = max(1, len(self._hints) // _KEPT_MAX)
        chosen = self._hints[::step]
        return chosen if chosen[-1] is self._hints[-1] else [*chosen, self._hints[-1]]


def beginning(topics: int) -> Hint:
    return Hint(EMPTY_END, (0,) * topics, 0, 0)
