"""How what a returning IDC holds differs from what the others hold, origin by origin; pure.

Figures are records (messages and all else that a log holds), summed over the partitions, as each
IDC told them. They were not asked at one instant and logs grow by ticks, so a few records are
always on their way; whether a return may go on is for the rule ``caught-up`` to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.control.evidence import Ends, Evidence, IdcFacts, most, short


@dataclass(frozen=True, slots=True)
class Row:
    """Of one origin's log. Up to its seal, if it has one: what lies above counts for nobody."""

    origin: str
    only_here: int  # held by the returning IDC, and by none of the others that answer
    missing: int  # held by another one, and not by the returning IDC
    unfolded: int  # held by the returning IDC, and not folded there yet
    sealed_at: int | None  # where the origin was sealed; None: it is not
    to_publish: Mapping[str, int]  # by IDC: what it has above the seal, to be published again
    published: Mapping[str, int]  # by IDC: ops that it has published again since it started

    @property
    def says_something(self) -> bool:
        return bool(
            self.only_here or self.missing or self.unfolded or self.to_publish or self.published
        )


@dataclass(frozen=True, slots=True)
class Divergence:
    """``origin``: under which the returning IDC publishes; empty: it does not answer, so there
    are no rows. ``silent``: others that do not answer, so what they hold is left out."""

    idc: str
    origin: str
    others: tuple[str, ...]
    silent: tuple[str, ...]
    rows: tuple[Row, ...]


def compare(evidence: Evidence, idc: str, idcs: Iterable[str]) -> Divergence:
    """Of sealed origins that say nothing, only the newest of each IDC has a row."""
    names = [name for name in idcs if name != idc]
    others = {name: evidence.idcs[name] for name in names if name in evidence.idcs}
    silent = tuple(name for name in names if name not in others)
    own = evidence.idcs.get(idc)
    if own is None:
        return Divergence(idc, "", tuple(others), silent, ())
    everyone, seals = {idc: own, **others}, committed_seals(evidence)
    origins = {name for one in everyone.values() for name in (*one.held, one.origin) if name}
    rows = [
        _row(origin, own, others, everyone, seals.get(origin))
        for origin in sorted(origins | seals.keys(), key=_order)
    ]
    newest = {_order(row.origin)[0]: row for row in rows if row.sealed_at is not None}
    kept = [
        row for row in rows if row.sealed_at is None or row.says_something or row in newest.values()
    ]
    return Divergence(idc, own.origin, tuple(others), silent, tuple(kept))


def committed_seals(evidence: Evidence) -> dict[str, Ends]:
    """All that anybody who answers knows of: a committed seal never changes."""
    return {origin: ends for one in evidence.idcs.values() for origin, ends in one.seals.items()}


def above_seals(facts: IdcFacts, seals: Mapping[str, Ends]) -> dict[str, int]:
    """What an IDC holds or has folded above each seal: it has to publish that again."""
    found = {
        origin: short(most([holds(facts, origin), facts.applied.get(origin, ())]), ends)
        for origin, ends in seals.items()
    }
    return {origin: count for origin, count in found.items() if count}


def holds(facts: IdcFacts, origin: str) -> Ends:
    return facts.ends if origin == facts.origin else facts.held.get(origin, ())


def as_document(divergence: Divergence) -> dict[str, Any]:
    """For -o json and an operation's evidence."""
    return {
        "idc": divergence.idc,
        "origin": divergence.origin,
        "others": list(divergence.others),
        "silent": list(divergence.silent),
        "origins": {
            row.origin: {
                "only_here": row.only_here,
                "missing": row.missing,
                "unfolded": row.unfolded,
                "sealed_at": row.sealed_at,
                "to_publish": dict(row.to_publish),
                "published": dict(row.published),
            }
            for row in divergence.rows
        },
    }


def _row(
    origin: str,
    own: IdcFacts,
    others: Mapping[str, IdcFacts],
    everyone: Mapping[str, IdcFacts],
    seal: Ends | None,
) -> Row:
    here = _counting(holds(own, origin), seal)
    there = _counting(most(holds(one, origin) for one in others.values()), seal)
    above = {} if seal is None else {n: above_seals(f, {origin: seal}) for n, f in everyone.items()}
    return Row(
        origin,
        only_here=short(here, there),
        missing=short(there, here),
        unfolded=short(here, own.applied.get(origin, ())),
        sealed_at=None if seal is None else sum(seal),
        to_publish={name: found[origin] for name, found in above.items() if found},
        published={
            name: count
            for name, facts in everyone.items()
            if (count := facts.published_again.get(origin, 0))
        },
    )


def _counting(ends: Ends, seal: Ends | None) -> Ends:
    """What of it counts: nothing above a seal, and a partition that the seal does not name has
    nothing below it."""
    if seal is None:
        return ends
    padded = (*seal, *([0] * len(ends)))
    return tuple(min(end, limit) for end, limit in zip(ends, padded, strict=False))


def _order(origin: str) -> tuple[str, int]:
    """IDC and incarnation, an integer (rule 6): fra.10 comes after fra.9."""
    idc, _, incarnation = origin.rpartition(".")
    return idc, int(incarnation)
