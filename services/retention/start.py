"""Whether what an IDC holds can be continued, and how its copies go on from a snapshot. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from imcore.words import Origin
from services.ports import LogEnd
from services.retention.shelf import Positions

Key = tuple[Origin, int]  # an origin's partition
EMPTY = LogEnd(0, bytes(16), 0)


class Range(NamedTuple):
    """The lsns that a log holds: from ``first`` to ``end`` (none when first is end + 1)."""

    first: int
    end: int


Ranges = Mapping[Key, Range]


def cut_off(own: Ranges, peers: Iterable[Ranges]) -> list[Key]:
    """Where others have more than is held here, and nobody has the record that comes next."""
    beyond: dict[Key, bool] = {}  # whether somebody has the next record
    for ranges in peers:
        for key, theirs in ranges.items():
            mine = own[key].end if key in own else 0
            if theirs.end > mine:
                beyond[key] = beyond.get(key, False) or theirs.first <= mine + 1
    return sorted(key for key, there in beyond.items() if not there)


def gaps(own: Ranges, positions: Positions) -> list[Key]:
    """Where a fold that stands at these positions cannot go on from the logs that are here."""
    return sorted(
        key for key, held in own.items() if held.first > positions.get(key, EMPTY).lsn + 1
    )


def restarts(own: Ranges, positions: Positions, source: Ranges) -> dict[Key, LogEnd]:
    """Which copies must begin anew at the snapshot's position. Copies that reach at least that far
    stay: what they hold above it may be nowhere else. Raises LookupError when a copy neither
    joins the snapshot nor is held by its source: then another snapshot is needed."""
    anew: dict[Key, LogEnd] = {}
    for key in {**own, **positions}:
        at = positions.get(key, EMPTY)
        held = own.get(key, Range(1, 0))
        if held.end < at.lsn:
            anew[key] = at
        elif held.first > at.lsn + 1:
            if source.get(key, Range(1, 0)).end < held.end:
                raise LookupError(
                    f"{key[0]} partition {key[1]} is held from {held.first} to {held.end} here, "
                    f"and the snapshot ends at {at.lsn}"
                )
            anew[key] = at
    return anew
