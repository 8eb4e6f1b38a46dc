"""What a failover may cost, from what the survivors hold of the lost IDC's log; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.control.evidence import Evidence, most, short


@dataclass(frozen=True, slots=True)
class Survivor:
    idc: str
    missing: int  # records known to exist that it does not hold yet; most come from the others
    unfolded: int  # records that it holds and has not folded yet: a moment's work


@dataclass(frozen=True, slots=True)
class Loss:
    """Records are messages and all else that a log holds. ``alone``: known to exist, and held by no
    survivor: delayed until the IDC returns; lost if it never does, but for what the outboxes of
    its senders bring back. ``heard``: the IDC itself was asked, so nothing is left out; else what
    it took after its last word to anybody is not counted. None: no survivor knows its log."""

    origin: str
    alone: int | None
    survivors: tuple[Survivor, ...]
    heard: bool

    def lines(self) -> list[str]:
        if self.alone is None:
            return [
                f"estimated loss: unknown, no surviving IDC that answers knows {self.origin}'s log"
            ]
        rows = [
            f"  {one.idc}: {one.missing} records of {self.origin} not stored yet, "
            f"{one.unfolded} stored but not folded yet"
            for one in self.survivors
        ]
        delayed = (
            f"estimated loss: {self.alone} records that no surviving IDC has are delayed until "
            f"{self.origin.rpartition('.')[0]} returns; if it never does, those that are not in "
            "a sender's outbox either are lost"
        )
        unheard = "  records accepted after its last report to the others are not counted"
        return [delayed, *rows, *([] if self.heard else [unheard])]


def estimate(evidence: Evidence, idc: str, survivors: Sequence[str]) -> Loss:
    """Of the newest incarnation that anybody names."""
    own = evidence.idcs.get(idc)
    facts = {name: evidence.idcs[name] for name in survivors if name in evidence.idcs}
    names = {origin for one in facts.values() for origin in (*one.held, *one.announced)}
    names |= {own.origin} if own and own.origin else set()
    origin = max((name for name in names if _idc(name) == idc), key=_incarnation, default="")
    if not origin or not facts:
        return Loss(origin or idc, None, (), False)
    heard = own is not None and own.origin == origin
    known = [one.announced.get(origin, ()) for one in facts.values()]
    known += [one.held.get(origin, ()) for one in facts.values()]
    known += [own.ends] if own is not None and heard else []
    ends = most(known)
    best = most([one.held.get(origin, ()) for one in facts.values()])
    rows = tuple(
        Survivor(
            name,
            short(ends, one.held.get(origin, ())),
            short(one.held.get(origin, ()), one.applied.get(origin, ())),
        )
        for name, one in facts.items()
    )
    return Loss(origin, short(ends, best), rows, heard)


def as_document(loss: Loss) -> Mapping[str, object]:
    """For -o json."""
    return {
        "origin": loss.origin,
        "records_delayed": loss.alone,
        "records_lost_at_most": loss.alone,
        "source_answers": loss.heard,
        "survivors": {
            one.idc: {"records_missing": one.missing, "records_unfolded": one.unfolded}
            for one in loss.survivors
        },
    }


def _idc(origin: str) -> str:
    return origin.rpartition(".")[0]


def _incarnation(origin: str) -> int:
    return int(origin.rpartition(".")[2])
