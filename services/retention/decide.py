"""What of the logs may be cut, and which snapshots are kept (rule 8). Pure.

A record may go once nobody can need it again:

- Every IDC that is not retired holds it durably, failed ones included: so none will ask for it,
  and no seal that is committed later can lie below it, because a seal is at least the end of one
  of them.
- A verified snapshot contains what it did. The snapshot must itself be *safe*: not above what all
  those IDCs hold, nor above a committed seal. Otherwise a later seal could call for a
  fold without some of the snapshot's ops, and the records for that fold would be gone.

What the others hold is judged by two looks at it, ``SEAL_COMMIT_S`` or more apart, and the seals
are read after the second: a seal that is being committed while one looks was computed from an older
state, but not from one so old (``services.node.identity``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from imcore.words import Origin

SEAL_COMMIT_S = 5.0

Ends = Mapping[Origin, Sequence[int]]  # of each origin, an lsn per partition


@dataclass(frozen=True, slots=True)
class Limits:
    log_bytes: int  # below this nothing is cut and no snapshot is taken
    snapshots: int  # at most this many are kept, at least 2


@dataclass(frozen=True, slots=True)
class Kept:
    """A verified snapshot. ``safe``: it was found safe before; that does not end, but for a seal
    below it, which says that the premises did not hold."""

    name: str
    vector: Ends
    safe: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """``held``: of every IDC of the region that is not retired, the own one included; None for
    one that was never heard of since the start."""

    log_bytes: int
    newest_bytes: int  # of the records above the newest snapshot
    held: Mapping[str, Ends | None]
    seals: Ends
    snapshots: Sequence[Kept]  # oldest first


@dataclass(frozen=True, slots=True)
class Plan:
    """In this order: mark ``safe``, cut, drop, take."""

    safe: tuple[str, ...] = ()
    cut: Mapping[tuple[Origin, int], int] = field(default_factory=dict)  # records below this lsn go
    drop: tuple[str, ...] = ()
    take: bool = False
    waiting_for: tuple[str, ...] = ()  # IDCs that hold a snapshot back


def at(ends: Ends, origin: Origin, partition: int) -> int:
    row = ends.get(origin, ())
    return row[partition] if partition < len(row) else 0


def least(all_held: Iterable[Ends | None]) -> dict[Origin, tuple[int, ...]]:
    """Of each origin that everybody holds something of, what everybody holds of it."""
    floor: dict[Origin, tuple[int, ...]] | None = None
    for held in all_held:
        if held is None:
            return {}
        if floor is None:
            floor = {origin: tuple(row) for origin, row in held.items()}
        else:
            floor = {
                origin: tuple(map(min, row, held[origin]))
                for origin, row in floor.items()
                if origin in held
            }
    return floor or {}


def within(vector: Ends, limit: Ends) -> bool:
    return all(
        lsn <= at(limit, origin, partition)
        for origin, row in vector.items()
        for partition, lsn in enumerate(row)
    )


def above_a_seal(vector: Ends, seals: Ends) -> bool:
    return any(
        lsn > at(seals, origin, partition)
        for origin, row in vector.items()
        if origin in seals
        for partition, lsn in enumerate(row)
    )


def decide(facts: Facts, before: Mapping[str, Ends | None], limits: Limits) -> Plan:
    """``before``: what was held at a look at least ``SEAL_COMMIT_S`` ago."""
    floor = least([least(facts.held.values()), least(before.get(idc) for idc in facts.held)])
    sound = [s for s in facts.snapshots if not above_a_seal(s.vector, facts.seals)]
    drop = [s.name for s in facts.snapshots if s not in sound]
    found_safe = [s.name for s in sound if not s.safe and within(s.vector, floor)]
    safe = [s for s in sound if s.safe or s.name in found_safe]
    waiting = [s for s in sound if s not in safe]
    # Of the safe ones the newest stay, of those that wait the oldest: it will be safe first.
    kept = safe[-(limits.snapshots - 1) :]
    drop += [s.name for s in safe if s not in kept] + [s.name for s in waiting[1:]]
    over = facts.log_bytes > limits.log_bytes
    # What has just become safe is cut first; whether that was enough shows at the next look.
    free = over and not waiting and not found_safe
    return Plan(
        safe=tuple(found_safe),
        cut=_cut(kept, floor) if over and kept else {},
        drop=tuple(drop),
        take=free and (not kept or facts.newest_bytes > limits.log_bytes // 2),
        waiting_for=_holding_back(waiting[0].vector, facts.held) if waiting else (),
    )


def _cut(kept: Sequence[Kept], floor: Ends) -> dict[tuple[Origin, int], int]:
    """Below every snapshot that is kept, so that the older one serves when the newer is damaged."""
    return {
        (origin, partition): below
        for origin, row in kept[0].vector.items()
        for partition in range(len(row))
        if (
            below := min(
                at(floor, origin, partition), *(at(s.vector, origin, partition) for s in kept)
            )
        )
        > 0
    }


def _holding_back(vector: Ends, held: Mapping[str, Ends | None]) -> tuple[str, ...]:
    return tuple(
        sorted(idc for idc, ends in held.items() if ends is None or not within(vector, ends))
    )
