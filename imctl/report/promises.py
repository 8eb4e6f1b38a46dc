"""What the demo promises, each a line with its limit and what was measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from imcore.checker import Report as Verdict
from imcore.checker.availability import Availability, Move
from imcore.region.model import Engines, Region
from imctl.auditrules import Judged
from imctl.report.model import Promise, Span
from services.loadgen.stats import Sample

STEADY_S = 15.0
UNPROVEN = "Conversations not checked in an IDC"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of time, in seconds."""

    rto_s: float = 8.0
    gap_s: float = 2.0
    moved_s: float = 20.0
    total_s: float = 180.0

    def times(self, factor: float) -> Limits:
        return Limits(*(limit * factor for limit in astuple(self)))


EMBEDDED = Limits()
REAL_ENGINES = EMBEDDED.times(1.5)


def limits_of(region: Region, steady_s: float = STEADY_S) -> Limits:
    """Real engines have half as much again as the embedded limits: a fixed limit, whatever a demo
    on the embedded engines takes on the same machine. ``steady_s``: of load before the fault, and
    after; what is more than usual is added to the whole run's time."""
    embedded = all(idc.engines == Engines() for idc in region.spec.idcs)
    limits = EMBEDDED if embedded else REAL_ENGINES
    more_s = 2 * max(0.0, steady_s - STEADY_S)
    return replace(limits, total_s=limits.total_s + more_s)


def of_verdict(verdict: Verdict) -> list[Promise]:
    """Nothing missing, nothing twice, one order, policies and cursors that only rise, equal
    replicas, and all of it looked at. Of a run that did not come to its end nothing is proven.
    What the history holds nothing of (the replicas' hashes, say) is not promised."""
    named = {
        "missing": "Acked messages missing",
        "duplicate": "Duplicate messages",
        "out_of_order": "Messages out of order",
        "phantom": "Messages never sent, or altered",
        "policy_wrong": "Policy epochs reverted or conflicting",
        "two_writers": "Places acked by two writers",
        "session_broken": "Read cursors reverted, unread counts wrong, own messages unseen",
        "replicas_differ": "Replicas that differ at the end",
        "changes_wrong": "Edits, recalls or reactions lost or different",
        "words_wrong": "Words on friends, settings or groups lost or different",
        "unproven": UNPROVEN,
    }
    counts = verdict.counts
    unseen = {
        "policy_wrong": not counts.policies,
        "two_writers": not counts.placed,
        "session_broken": not counts.cursors + counts.unread + counts.own_looked_for,
        "replicas_differ": not counts.replicas,
        "changes_wrong": not counts.changes,
        "words_wrong": not counts.stands,
    }
    promises = [
        _zero(text, verdict.total(group))
        for group, text in named.items()
        if verdict.total(group) or not unseen.get(group)
    ]
    if verdict.finished and verdict.counts.acked:
        return promises
    return [
        held._replace(measured="not judged", ok=False, repeatable=True) if held.ok else held
        for held in promises
    ]


def of_failover(availability: Availability, limits: Limits = EMBEDDED) -> list[Promise]:
    if not availability.outages:
        return [Promise("Failover", "done", "no fault was injected", False)]
    outage = availability.outages[0]
    rto = outage.rto_us()
    recovered = f"{len(outage.recovered)} of {len(outage.affected)} clients"
    promises = [
        Promise(
            "RTO (99 % of affected clients acked again)",
            f"<= {limits.rto_s:g} s",
            f"never ({recovered})" if rto is None else f"{rto / 1e6:.2f} s ({recovered})",
            rto is not None and rto <= limits.rto_s * 1e6 and bool(outage.affected),
            repeatable=True,
        )
    ]
    rpo = availability.rpo()
    if rpo is None:
        return [*promises, Promise("RPO: messages lost", "0", "not checked", False, True)]
    measured = f"{rpo.lost} ({rpo.delayed} delayed, of {rpo.looked_at} checked)"
    return [
        *promises,
        Promise("RPO: messages lost", "0", measured, rpo.lost == 0 and rpo.looked_at > 0),
    ]


def of_switchover(move: Move, limits: Limits = EMBEDDED) -> list[Promise]:
    moved = move.moved_us()
    count = f"{len(move.to_move)} clients"
    return [
        Promise(
            "Switchover gap",
            f"<= {limits.gap_s:g} s",
            f"{move.gap / 1e6:.2f} s",
            move.gap <= limits.gap_s * 1e6,
            repeatable=True,
        ),
        Promise(
            "Switchover: all clients moved",
            f"<= {limits.moved_s:g} s",
            f"not all of {count}" if moved is None else f"{moved / 1e6:.1f} s ({count})",
            moved is not None and moved <= limits.moved_s * 1e6 and bool(move.to_move),
            repeatable=True,
        ),
        _zero("Switchover: failed sends", move.failed),
    ]


def of_rate(
    samples: Sequence[Sample], steady: Sequence[Span], wanted: float, group_wanted: float
) -> list[Promise]:
    """The rates of acks over the undisturbed phases; the first second of each is left out."""
    within = [
        sample
        for sample in samples
        if any(span.start + 1 <= sample.t <= span.end for span in steady)
    ]
    count = max(1, len(within))
    acked = sum(sample.acked for sample in within) / count
    offered = sum(sample.offered for sample in within) / count
    groups = sum(sample.group_acked for sample in within) / count
    return [
        Promise(
            "Message rate before and after",
            f">= {wanted:g}/s",
            f"{acked:.0f}/s acked, {offered:.0f}/s offered",
            acked >= wanted,
            repeatable=True,
        ),
        Promise(
            "Message rate to groups",
            f">= {group_wanted:g}/s",
            f"{groups:.0f}/s",
            groups >= group_wanted,
            repeatable=True,
        ),
    ]


def of_rules(changes: Sequence[Judged]) -> Promise:
    """The safety rules, by the audit logs."""
    bad = sum(bool(each.broken) for each in changes)
    name, measured = "Policy changes that broke a safety rule", f"{bad} of {len(changes)}"
    return Promise(name, "0", measured, not bad)


def of_time(seconds: float, limits: Limits = EMBEDDED) -> Promise:
    measured, limit = f"{seconds:.0f} s", limits.total_s
    return Promise("Total run time", f"< {limit:g} s", measured, seconds < limit, True)


def of_return(idc: str, at_end: int, before: int) -> Promise:
    """The victim serves about as many clients as before the fault."""
    return Promise(
        f"{idc} has its clients back",
        f">= {before * 9 // 10}",
        f"{at_end} of {before} clients",
        before > 0 and at_end >= before * 9 // 10,
        repeatable=True,
    )


def _zero(name: str, measured: int) -> Promise:
    return Promise(name, "0", str(measured), measured == 0)
