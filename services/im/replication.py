"""Who waits for an op to be held elsewhere (rules 4 and 13). Pure: positions in, answers out."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

Answer = Callable[[bool], None]  # True: replicated; False: the time is up


@dataclass(order=True, slots=True)
class _Waiting:
    lsn: int
    deadline: float
    answer: Answer = field(compare=False)
    done: bool = field(default=False, compare=False)


class ReplicationTracker:
    """Of one partition of the own log. ``held``: what each other IDC has durably. ``others``: how
    many other IDCs there are: where there are none, durable here is all that can be had, and counts
    as replicated, or no outbox of a single-IDC region would ever empty."""

    def __init__(self, replicas: int, others: int) -> None:
        self._replicas = min(replicas, others)
        self._alone = others == 0
        self.held: dict[str, int] = {}
        self._waiting: list[_Waiting] = []

    def level(self, replicas: int) -> int:
        """The lsn up to which at least this many other IDCs hold the log."""
        if self._alone:
            return 1 << 63
        ends = sorted(self.held.values(), reverse=True)
        return ends[replicas - 1] if len(ends) >= replicas else 0

    def __len__(self) -> int:
        """Acks that wait."""
        return len(self._waiting)

    def wait(self, lsn: int, deadline: float, answer: Answer) -> None:
        if self.level(self._replicas) >= lsn:
            answer(True)
        else:
            heapq.heappush(self._waiting, _Waiting(lsn, deadline, answer))

    def peer_holds(self, idc: str, lsn: int) -> bool:
        """Merge a report; True when the lsn held by at least one other IDC has risen."""
        before = self.level(1)
        self.held[idc] = max(lsn, self.held.get(idc, 0))
        level = self.level(self._replicas)
        while self._waiting and self._waiting[0].lsn <= level:
            waiting = heapq.heappop(self._waiting)
            if not waiting.done:
                waiting.answer(True)
        return self.level(1) > before

    def expire(self, now: float) -> None:
        for waiting in self._waiting:
            if not waiting.done and waiting.deadline <= now:
                waiting.done = True
                waiting.answer(False)
        while self._waiting and self._waiting[0].done:
            heapq.heappop(self._waiting)
