"""When which of several gateways is dialled (RFC 8305, Happy Eyeballs v2). Pure: seconds come in.

The best is dialled first and has the field to itself for a while, which is short, but not so short
that one which is only far away would lose to one that is nobody's first choice: whoever goes to
another IDC than the policy's is sent back by it.
"""

from __future__ import annotations

from collections.abc import Sequence

DELAY_S = 0.25  # as RFC 8305 recommends
# Before one in another IDC: a home that is slow, as when everybody returns at once, must not pour
# its clients over the others, which would only send them back.
ELSEWHERE_S = 1.0
DELAY_MAX_S = 2.0
FAR = 1.5  # a gateway whose last handshake is known has as many times that


def head_start_s(handshake_s: float | None, elsewhere: bool) -> float:
    """How long a gateway is waited for before the next is dialled too. ``handshake_s``: what its
    last one took; None: not known. ``elsewhere``: the next is in another IDC."""
    least_s = ELSEWHERE_S if elsewhere else DELAY_S
    return min(max(least_s, FAR * (handshake_s or 0.0)), DELAY_MAX_S)


def order(idcs: Sequence[str], avoided: Sequence[bool]) -> list[int]:
    """In which order ipconf's gateways are tried, as places in its answer. ``idcs``: of each. The
    best one and one beside it, since one machine is lost more often than an IDC; then each other
    IDC's best; those that have just failed last."""
    seen: dict[str, int] = {}
    ranks = []
    for place, idc in enumerate(idcs):
        nth = seen[idc] = seen.get(idc, 0) + 1
        ranks.append((avoided[place], nth - (idc == idcs[0]), place))
    return [place for *_, place in sorted(ranks)]


class Race:
    """``head_starts``: of each, in the order in which they are dialled."""

    def __init__(self, head_starts: Sequence[float]) -> None:
        self._head_starts = head_starts
        self._started = 0
        self._running = 0
        self._next_at = 0.0

    def due(self, now: float) -> int | None:
        """The place of the one to be dialled now, if any: it counts as dialled then."""
        if self._started == len(self._head_starts):
            return None
        if self._running and now < self._next_at:
            return None
        index = self._started
        self._started += 1
        self._running += 1
        self._next_at = now + self._head_starts[index]
        return index

    def failed(self) -> None:
        """One that was dialled cannot be had. When none is left the next is due at once."""
        self._running -= 1

    def wait_s(self, now: float) -> float | None:
        """Until the next is due; None: all have been dialled."""
        if self._started == len(self._head_starts):
            return None
        return max(0.0, self._next_at - now) if self._running else 0.0

    def over(self) -> bool:
        """All have failed."""
        return self._running == 0 and self._started == len(self._head_starts)
