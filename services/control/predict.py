"""What a move will do: who goes where, what the others then carry, how long it takes; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from imcore.region.model import Region
from services.control.evidence import Evidence
from services.control.follow import RAMP_STEPS, STEP_S
from services.policy.document import IdcState, Policy
from services.policy.pace import moves_per_s
from services.policy.spread import Load, spread, with_row

SEEN_S = 0.5  # until movers follow a commit
GO_S = 1.0  # so long a client may take to go
STEP_COMMIT_S = 0.5  # until a step that is due is committed
SHARES = (0.25, 0.5, 0.75, 1.0)

Curve = Sequence[tuple[float, float]]  # (seconds, sessions that had moved by then), both rising


@dataclass(frozen=True, slots=True)
class Forecast:
    """``moves``: sessions by (from, to). ``loads``: what each IDC then carries. ``rate``: sessions
    a second that all who give hand over together; 0: nobody does. ``curve``: points of (seconds
    from the commit, sessions that have moved by then)."""

    moves: Mapping[tuple[str, str], float]
    loads: Mapping[str, Load]
    rate: float
    curve: tuple[tuple[float, float], ...]

    @property
    def sessions(self) -> float:
        return sum(self.moves.values())

    @property
    def seconds(self) -> float:
        """Until the last client has moved and the last step is committed."""
        return self.curve[-1][0]


def forecast(
    before: Policy, after: Policy, region: Region, evidence: Evidence, idc: str
) -> Forecast:
    """Of a move of ``idc``'s clients that the change from ``before`` to ``after`` begins."""
    returns = after.state(idc) in (IdcState.RECOVERING, IdcState.ACTIVE)
    end = with_row(after, idc, replace(after.idcs[idc], state=IdcState.ACTIVE, ramp=100))
    last = end if returns else after
    sources = [name for name in evidence.idcs if (name == idc) != returns]
    moves: dict[tuple[str, str], float] = {}
    for source in sources:
        told = evidence.idcs[source].by_shard(region.spec.geo.default)
        for target, count in spread(before, last, region, source, told).items():
            if target != source and (not returns or target == idc):
                moves[source, target] = count
    rates = {source: moves_per_s(last, region, source) for source, _ in moves}
    if after.state(idc) is IdcState.FAILED:
        rates, curve = {}, [(SEEN_S, sum(moves.values()))]  # they find out themselves
    elif returns:
        curve = _return_curve(moves, rates)
    else:
        curve = _drain_curve(moves, rates)
    return Forecast(moves, _loads(evidence, moves), sum(rates.values()), tuple(curve))


def time_of(curve: Curve, share: float) -> float | None:
    """When this share of all that moved in the end had moved, in seconds; between two points as
    on a straight line. None: nobody moved."""
    total = curve[-1][1] if curve else 0.0
    if total <= 0:
        return None
    before = (0.0, 0.0)
    for at, moved in curve:
        if moved >= share * total:
            (t, n) = before
            part = (share * total - n) / (moved - n) if moved > n else 1.0
            return t + (at - t) * part
        before = (at, moved)
    raise AssertionError("a curve ends at its total")


def apart(predicted: Curve, measured: Curve) -> float | None:
    """How far a predicted curve lies from the measured one: the largest difference of the times
    by which the ``SHARES`` had moved, as a share of the measured time. None: nobody moved in one
    of them."""
    found = []
    for share in SHARES:
        said, was = time_of(predicted, share), time_of(measured, share)
        if said is None or not was:
            return None
        found.append(abs(said - was) / was)
    return max(found)


def _loads(evidence: Evidence, moves: Mapping[tuple[str, str], float]) -> dict[str, Load]:
    """Messages go with those who send them, as many as each IDC has a session now."""
    sessions = {name: float(facts.sessions) for name, facts in evidence.idcs.items()}
    rates = {name: facts.messages_per_s for name, facts in evidence.idcs.items()}
    for (source, target), count in moves.items():
        facts = evidence.idcs[source]
        rate = facts.messages_per_s * count / facts.sessions if facts.sessions else 0.0
        sessions[source] -= count
        rates[source] -= rate
        sessions[target] = sessions.get(target, 0.0) + count
        rates[target] = rates.get(target, 0.0) + rate
    return {name: Load(sessions[name], rates[name]) for name in sessions}


def _drain_curve(
    moves: Mapping[tuple[str, str], float], rates: Mapping[str, float]
) -> list[tuple[float, float]]:
    total = sum(moves.values())
    needed = total / min(rates.values()) if rates else 0.0
    gone = SEEN_S + needed + (GO_S if total else 0.0)
    return [(0.0, 0.0), (SEEN_S, 0.0), (gone, total), (gone + STEP_COMMIT_S, total)]


def _return_curve(
    moves: Mapping[tuple[str, str], float], rates: Mapping[str, float]
) -> list[tuple[float, float]]:
    """Each step lets more of them go; what a step could not hand over goes with the next."""
    by_source: Counter[str] = Counter()
    for (source, _), count in moves.items():
        by_source[source] += count  # type: ignore[assignment]
    moved = dict.fromkeys(by_source, 0.0)
    points, now = [(0.0, 0.0)], STEP_COMMIT_S
    for step in RAMP_STEPS:
        due = {name: by_source[name] * step / 100 for name in by_source}
        wait = STEP_S + STEP_COMMIT_S
        if step == RAMP_STEPS[-1]:
            left = (_over(due[name] - moved[name], rates[name]) for name in by_source)
            wait = max(left, default=0.0) + (SEEN_S + GO_S if by_source else 0.0)
        for name in by_source:
            moved[name] = min(due[name], moved[name] + rates[name] * wait)
        now += wait
        points.append((now, sum(moved.values())))
    return points


def _over(count: float, rate: float) -> float:
    return max(0.0, count) / rate


def busiest(loads: Iterable[tuple[str, Load]], region: Region) -> dict[str, float]:
    """By IDC, the share of its capacity that a load takes: of sessions or messages, the larger."""
    capacity = {idc.name: idc.capacity for idc in region.spec.idcs}
    return {
        name: max(
            load.sessions / capacity[name].sessions,
            load.messages_per_s / capacity[name].messages_per_s,
        )
        for name, load in loads
        if name in capacity
    }
