"""What the others carry while an IDC is away, by the placement that the movers follow; and what
the evaluator says to that."""

from __future__ import annotations

from typing import NamedTuple

from imcore.region.model import Region
from services.control.evaluate import evaluate
from services.control.evidence import Evidence
from services.control.predict import forecast
from services.control.rules import Change, Kind
from services.policy.document import IdcPolicy, IdcState, Policy
from services.policy.spread import Load, with_row


class Survivor(NamedTuple):
    """``_max``: what ``safety.headroom`` allows it."""

    idc: str
    sessions: int
    sessions_max: float
    messages_per_s: float
    messages_per_s_max: float

    @property
    def fits(self) -> bool:
        return self.sessions <= self.sessions_max and self.messages_per_s <= self.messages_per_s_max


class Refusal(NamedTuple):
    """``by``: by whose rules, "running" or "wanted"."""

    rule: str
    sentence: str
    by: str

    def __str__(self) -> str:
        wanted = "under the new file, " if self.by == "wanted" else ""
        return f"{wanted}{self.rule}: {self.sentence}"


# What says no for these goes away by itself: a lag, the silence of an IDC that has just died.
PASSING = frozenset({"anti-flap", "evidence-age", "one-move-at-a-time", "replication-lag"})


class Away(NamedTuple):
    """``idc`` is drained and restarted."""

    idc: str
    sessions: int  # that move away, and back
    messages_per_s: float
    survivors: tuple[Survivor, ...]
    refusals: tuple[Refusal, ...]  # what the evaluator would say to its drain now

    @property
    def room(self) -> float:
        return sum(each.sessions_max + each.messages_per_s_max for each in self.survivors)


def away_by(
    idc: str,
    policy: Policy,
    running: Region,
    wanted: Region,
    evidence: Evidence,
    now_ms: int,
) -> Away:
    """By the rules of the file that runs and of the wanted one, whichever allows less: while it
    rolls, some go by the one and some by the other."""
    old = away(idc, policy, running, evidence, now_ms)
    new = away(idc, policy, wanted, evidence, now_ms)
    tighter = new if new.room < old.room else old
    added = tuple(said._replace(by="wanted") for said in new.refusals if said not in old.refusals)
    return tighter._replace(refusals=(*old.refusals, *added))


def away(idc: str, policy: Policy, region: Region, evidence: Evidence, now_ms: int) -> Away:
    own, headroom = evidence.idcs.get(idc), region.spec.safety.headroom
    drained = with_row(policy, idc, IdcPolicy(IdcState.DRAINING))
    loads = forecast(policy, drained, region, evidence, idc).loads
    survivors = []
    for each in region.spec.idcs:
        if each.name == idc or policy.state(each.name) is not IdcState.ACTIVE:
            continue
        load = loads.get(each.name, Load(0, 0))
        survivors.append(
            Survivor(
                each.name,
                round(load.sessions),
                headroom * each.capacity.sessions,
                load.messages_per_s,
                headroom * each.capacity.messages_per_s,
            )
        )
    refusals: tuple[Refusal, ...] = ()
    if policy.state(idc) in (IdcState.ACTIVE, IdcState.CORDONED, IdcState.DRAINING):
        blockers = evaluate(
            policy, Change(Kind.DRAIN, idc, "", "plan"), evidence, region, now_ms
        ).blockers
        refusals = tuple(Refusal(each.rule, each.sentence, "running") for each in blockers)
    sessions, rate = (own.sessions, own.messages_per_s) if own else (0, 0.0)
    return Away(idc, sessions, rate, tuple(survivors), refusals)
