"""Which fronts have sessions of which users: the core's own word, without asking anybody. Pure.

A message looks for its receivers here. What that costs goes by the number of receivers and not by
that of the fronts (`python -m benchmarks routing`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

F = TypeVar("F", bound=Hashable)


class Where(Generic[F]):
    """``F``: a front."""

    def __init__(self) -> None:
        self._fronts: dict[str, tuple[F, ...]] = {}  # by user
        self._alone: dict[F, tuple[F, ...]] = {}  # one object for the many with one front

    def note(self, uid: str, front: F, here: bool) -> None:
        """Whether this front has a session of this user now."""
        known = self._fronts.get(uid, ())
        if here is (front in known):
            return
        if here:
            alone = self._alone.setdefault(front, (front,))
            self._fronts[uid] = (*known, front) if known else alone
        elif len(known) > 1:
            left = tuple(each for each in known if each != front)
            self._fronts[uid] = left if len(left) > 1 else self._alone.setdefault(left[0], left)
        else:
            del self._fronts[uid]

    def gone(self, front: F, uids: Iterable[str]) -> None:
        """The front, which had sessions of these users."""
        for uid in uids:
            self.note(uid, front, False)
        self._alone.pop(front, None)

    def of(self, uids: Iterable[str]) -> dict[F, list[str]]:
        """Each front that has sessions of some of these users, and of which ones, in order."""
        fronts, found = self._fronts, dict[F, list[str]]()
        if len(self._alone) == 1:  # of an IDC with one gateway
            known = [uid for uid in uids if uid in fronts]
            return dict.fromkeys(self._alone, known) if known else {}
        for uid in uids:
            for front in fronts.get(uid, ()):
                here = found.get(front)
                if here is None:
                    found[front] = [uid]
                else:
                    here.append(uid)
        return found
