"""Pass, deviated or inconclusive, and why. Pure.

Nothing passes by default: a drill that did not come to its end, that carried too little load or
whose probes saw too little shows nothing. What did go wrong counts all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from imctl.report.model import Promise
from imctl.report.promises import UNPROVEN

BLIND_PERCENT_MAX = 20  # of the looks during the method
LOOKS_MIN = 5


class Outcome(StrEnum):
    PASS = "pass"  # noqa: S105
    DEVIATED = "deviated"
    INCONCLUSIVE = "inconclusive"
    ABORTED = "aborted"  # by the operator; everything was undone


class Look(NamedTuple):
    """One look of the steady-state hypothesis. ``broken``: the probe whose value is outside its
    tolerance; ``blind``: the one that saw nothing."""

    when: str  # before, during, after, restored
    t: float
    broken: str = ""
    blind: str = ""


class Finding(NamedTuple):
    """``t``: seconds from the load's start, or None: found in the end."""

    outcome: Outcome
    sentence: str
    t: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a drill that has ended. ``failed``: the action that failed, and why."""

    looks: Sequence[Look] = ()
    promises: Sequence[Promise] = ()
    failed: tuple[float, str] | None = None
    condition: tuple[float, str] | None = None  # an abort condition that came true
    operator: str = ""  # ended by hand
    broken: str = ""  # the drill itself did not work
    acked: int = 0
    acked_min: int = 1
    canaries: Mapping[tuple[str, str], int] = field(default_factory=dict)
    canaries_min: int = 1
    finished: bool = False  # the history has its end
    left: Sequence[str] = ()  # faults that could not be undone
    disputes: Sequence[str] = ()


class Verdict(NamedTuple):
    outcome: Outcome
    reason: str
    findings: tuple[Finding, ...]

    def line(self) -> str:
        """The first line of every report."""
        more = len(self.findings) - 1
        others = f" (and {more} more)" if more > 0 else ""
        return f"{self.outcome}: {self.reason}{others}"


def judge(facts: Facts) -> Verdict:
    deviated = sorted(_deviations(facts), key=lambda found: (found.t is None, found.t or 0.0))
    lacking = list(_lacking(facts))
    findings = (*deviated, *lacking)
    if deviated:
        return Verdict(Outcome.DEVIATED, deviated[0].sentence, findings)
    if facts.operator:
        return Verdict(Outcome.ABORTED, facts.operator, findings)
    if lacking:
        return Verdict(Outcome.INCONCLUSIVE, lacking[0].sentence, findings)
    return Verdict(Outcome.PASS, "every promise held", ())


def _deviations(facts: Facts) -> Iterable[Finding]:
    def found(sentence: str, t: float | None = None) -> Finding:
        return Finding(Outcome.DEVIATED, sentence, t)

    seen = set()
    for look in facts.looks:
        probe = (look.when, look.broken.partition(": ")[0])
        if look.broken and look.when != "before" and probe not in seen:
            seen.add(probe)
            yield found(f"{look.broken} ({look.when}, at {look.t:.0f} s)", look.t)
    if facts.condition:
        t, said = facts.condition
        yield found(f"abort condition: {said}", t)
    if facts.failed:
        t, said = facts.failed
        yield found(said, t)
    for said in facts.disputes:
        yield found(f"split brain: {said}")
    for said in facts.left:
        yield found(said)
    for promise in facts.promises:
        if not promise.ok and not _unproven(promise):
            yield found(f"{promise.name}: {promise.measured}, promised {promise.limit}")


def _unproven(promise: Promise) -> bool:
    """It was not judged, or not looked at: nothing is shown either way."""
    return promise.measured == "not judged" or promise.name == UNPROVEN


def _lacking(facts: Facts) -> Iterable[Finding]:
    def found(sentence: str, t: float | None = None) -> Finding:
        return Finding(Outcome.INCONCLUSIVE, sentence, t)

    if facts.broken:
        yield found(f"the drill itself failed: {facts.broken}")
    for look in facts.looks:
        if look.when == "before" and (look.broken or look.blind):
            yield found(f"not steady before the drill: {look.broken or look.blind}", look.t)
    if not any(look.when == "before" for look in facts.looks):
        yield found('no "before" check of the steady state')
    during = [look for look in facts.looks if look.when == "during"]
    blind = [look for look in during if look.blind]
    if len(during) < LOOKS_MIN:
        yield found(f"only {len(during)} checks during the drill, at least {LOOKS_MIN} are needed")
    elif len(blind) * 100 > BLIND_PERCENT_MAX * len(during):
        said = f"probes failed in {len(blind)} of {len(during)} checks: {blind[0].blind}"
        yield found(said, blind[0].t)
    for when in ("after", "restored"):
        looks = [look for look in facts.looks if look.when == when]
        if not looks:
            yield found(f'no "{when}" check of the steady state')
        elif looks[-1].blind:
            yield found(f'probes failed in the "{when}" check: {looks[-1].blind}', looks[-1].t)
    if facts.acked < facts.acked_min:
        yield found(f"too little load: {facts.acked} messages acked, {facts.acked_min} are needed")
    for (a, b), count in facts.canaries.items():
        if count < facts.canaries_min:
            yield found(
                f"too few canaries: {count} acked from {a} to {b}, {facts.canaries_min} are needed"
            )
    for promise in facts.promises:
        if facts.finished and not promise.ok and _unproven(promise):
            yield found(f"{promise.name}: {promise.measured}")
    if not facts.finished:
        yield found("the history ends early, so missing messages cannot be ruled out")


def looks_of(journal: Mapping[str, Any], since: float) -> list[Look]:
    """Of a Chaos Toolkit journal, whose states of the hypothesis we also write under "restored".
    ``since``: the load's start, seconds since the Unix epoch."""
    states = journal.get("steady_states") or {}
    looks: list[Look] = []
    for when in ("before", "during", "after", "restored"):
        found = states.get(when)
        rows = found if isinstance(found, list) else [found]
        looks += [_look(when, row, since) for row in rows if row and row.get("probes")]
    return sorted(looks, key=lambda look: look.t)


def _look(when: str, state: Mapping[str, Any], since: float) -> Look:
    last = state["probes"][-1]
    t = datetime.fromisoformat(last["start"]).timestamp() - since
    name = last["activity"]["name"]
    if last["status"] != "succeeded":
        return Look(when, t, blind=f"{name}: {error_of(last)}")
    if state["steady_state_met"]:
        return Look(when, t)
    about = f"; {last['about']}" if last.get("about") else ""
    limit = _tolerance(last["activity"].get("tolerance"))
    return Look(when, t, broken=f"{name}: {_number(last['output'])}, {limit}{about}")


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _tolerance(tolerance: Any) -> str:
    if isinstance(tolerance, Mapping) and tolerance.get("type") == "range":
        low, high = tolerance["range"]
        return f"steady is at most {high:g}" if low <= 0 else f"steady is {low:g} to {high:g}"
    if isinstance(tolerance, list) and len(tolerance) == 2:
        return f"steady is {tolerance[0]} to {tolerance[1]}"
    return f"steady is {tolerance}"


def error_of(run: Mapping[str, Any]) -> str:
    """What an activity that failed said, without the names of Python's classes."""
    text = "".join(run.get("exception") or ["no reason"]).strip().splitlines()[-1]
    for _ in range(3):
        head, colon, rest = text.partition(": ")
        if not colon or " " in head or not head.replace(".", "").replace("_", "").isalnum():
            break
        text = rest
    return text
