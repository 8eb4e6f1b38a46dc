"""What is to be done next for the operation under way; pure, so any controller can take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.control.evidence import IdcFacts, Mark, mark_of
from services.control.rules import Change, Kind
from services.policy.document import IdcState, OperationRef, Policy

RAMP_STEPS = (10, 50, 100)
STEP_S = 1.5  # how long a ramp step is watched before the next


@dataclass(slots=True)
class Marks:
    """Where logs ended when the present wait began. All memory of a driver: another controller
    that takes over starts a wait of its own, which only costs its time."""

    epoch: int = 0
    marks: dict[str, Mark] = field(default_factory=dict)

    def take(self, policy: Policy, facts: Mapping[str, IdcFacts]) -> dict[str, Mark]:
        """A mark per IDC, taken at this policy epoch; that of a draining IDC is taken again until
        it has no sessions."""
        if self.epoch != policy.epoch:
            self.epoch, self.marks = policy.epoch, {}
        for name, seen in facts.items():
            known = self.marks.get(name)
            draining = policy.state(name) is IdcState.DRAINING
            left = known is not None and draining and known.sessions > 0
            if known is None or left or known.origin != seen.origin:
                self.marks[name] = mark_of(seen)
        return dict(self.marks)


def next_change(policy: Policy, now_ms: int, by: str) -> Change | None:
    """The change that would bring the operation on. The evaluator says whether it is time; a
    refusal only means "not yet". The request id is the same whoever drives."""
    running = policy.operation
    if running is None:
        return None
    known = policy.idcs[running.idc]
    if running.kind in (Kind.DRAIN, Kind.SWITCHOVER):
        if known.state is not IdcState.DRAINING:
            return None
        return Change(Kind.DRAINED, running.idc, f"{running.id}/drained", by)
    return _ramp(running, known.state, known.ramp, now_ms - known.since_ms, by)


def _ramp(
    running: OperationRef, state: IdcState, ramp: int, since_ms: int, by: str
) -> Change | None:
    if running.kind != Kind.FAILBACK:
        return None
    if state is IdcState.RECOVERING:
        step = RAMP_STEPS[0]
    elif state is IdcState.ACTIVE and ramp < 100 and since_ms >= STEP_S * 1000:
        step = next(each for each in RAMP_STEPS if each > ramp)
    else:
        return None
    return Change(Kind.RAMP, running.idc, f"{running.id}/ramp-{step}", by, ramp=step)


def own_recovery(policy: Policy, own: str, boot: str, by: str) -> Change | None:
    """An IDC that finds itself failed says that it is back; traffic waits for a failback."""
    if policy.state(own) is not IdcState.FAILED:
        return None
    return Change(Kind.RECOVERING, own, f"recovering-{own}-{policy.epoch}-{boot}", by)
