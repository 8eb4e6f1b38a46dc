"""Do lists of the same things agree on one order? Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Disagreement(NamedTuple):
    """``first`` stands before ``second`` in view ``left``, and not so in view ``right``.
    ``right`` is -1 when no two views disagree directly, yet no single order fits them all."""

    first: int
    second: int
    left: int
    right: int


def disagreements(views: Sequence[Sequence[int]]) -> list[Disagreement]:
    """At most one for each view that does not fit; empty when one order fits all views.

    Each view is compared with the longest; only if that finds nothing and some view has what the
    longest lacks is the general question asked: is the graph of neighbours free of cycles?
    """
    if len(views) < 2:
        return []
    longest = max(range(len(views)), key=lambda number: len(views[number]))
    rank = {item: place for place, item in enumerate(views[longest])}
    found = []
    extras = False
    for number, view in enumerate(views):
        last = None
        for item in view:
            if item not in rank:
                extras = True
            elif last is not None and rank[item] < rank[last]:
                found.append(Disagreement(item, last, longest, number))
                break
            else:
                last = item
    if not found and extras:
        return _cycle(views)
    return found


def _cycle(views: Sequence[Sequence[int]]) -> list[Disagreement]:
    """Kahn's algorithm over the neighbours of all views."""
    after: dict[int, dict[int, int]] = {}  # item: what follows it, and in which view
    pending: dict[int, int] = {}
    for number, view in enumerate(views):
        for item in view:
            after.setdefault(item, {})
            pending.setdefault(item, 0)
        for left, right in itertools.pairwise(view):
            if right not in after[left]:
                after[left][right] = number
                pending[right] += 1
    ready = [item for item, count in pending.items() if not count]
    while ready:
        item = ready.pop()
        del pending[item]
        for follower in after[item]:
            pending[follower] -= 1
            if not pending[follower]:
                ready.append(follower)
    for item in pending:
        for follower, number in after[item].items():
            if follower in pending and _reaches(after, pending, follower, item):
                return [Disagreement(item, follower, number, -1)]
    return []


def _reaches(
    after: dict[int, dict[int, int]], within: dict[int, int], start: int, goal: int
) -> bool:
    seen = {start}
    stack = [start]
    while stack:
        item = stack.pop()
        if item == goal:
            return True
        fresh = [other for other in after[item] if other in within and other not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return False
