"""What is to be done next for the operation under way; pure, so any controller can take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imcore.region.model import Safety
from services.control.evidence import Evidence, IdcFacts, Mark, mark_of, short
from services.control.rules import Change, Kind, is_fresh, is_within
from services.policy.document import IdcState, OperationRef, OperationState, Policy

RAMP_STEPS = (10, 50, 100)
LAST_STEPS = ("drained", "ramp-100")  # how the request of an operation's last change ends
STEP_S = 1.5  # how long a ramp step is watched before the next


@dataclass(slots=True)
class Marks:
    """Where logs ended when the present wait began. All memory of a driver: another controller
    that takes over starts a wait of its own, which only costs its time."""

    epoch: int = 0
    marks: dict[str, Mark] = field(default_factory=dict)

    def take(self, policy: Policy, facts: Mapping[str, IdcFacts]) -> dict[str, Mark]:
        """A mark per IDC, taken at this policy epoch; that of a draining IDC is taken again until
        it has no sessions, and once more when one has come back. None of one that does not serve:
        it has no session and, until its log is open, no end either, which everybody would have
        reached."""
        if self.epoch != policy.epoch:
            self.epoch, self.marks = policy.epoch, {}
        for name, seen in facts.items():
            if not seen.serving:
                continue
            known = self.marks.get(name)
            draining = policy.state(name) is IdcState.DRAINING
            left = known is not None and draining and (known.sessions or seen.sessions) > 0
            if known is None or left or known.origin != seen.origin:
                self.marks[name] = mark_of(seen)
        return dict(self.marks)


def next_change(policy: Policy, now_ms: int, by: str) -> Change | None:
    """The change that would bring the operation on. The evaluator says whether it is time; a
    refusal only means "not yet". The request id is the same whoever drives."""
    running = policy.operation
    if running is None or running.state is not OperationState.RUNNING:
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
    elif state is IdcState.ACTIVE and ramp < 100 and not is_within(since_ms, int(STEP_S * 1000)):
        step = next(each for each in RAMP_STEPS if each > ramp)
    else:
        return None
    return Change(Kind.RAMP, running.idc, f"{running.id}/ramp-{step}", by, ramp=step)


@dataclass(slots=True)
class Progress:
    """Whether the step that is waited for comes any nearer. All memory of a driver, as ``Marks``.

    An IDC that catches up before its first clients return is given all the time that it takes:
    nobody is between two IDCs meanwhile."""

    epoch: int = 0
    least: tuple[int, int] | None = None
    since_ms: int = 0

    def stalls(self, policy: Policy, evidence: Evidence, safety: Safety, now_ms: int) -> bool:
        """Call it while the step is refused. Who does not hear the IDC cannot say that nothing
        happens there."""
        running = policy.operation
        facts = evidence.idcs.get(running.idc) if running else None
        if (
            running is None
            or facts is None
            or not is_fresh(now_ms - facts.at_ms, safety.evidence_age_ms_max)
            or policy.state(running.idc) is IdcState.RECOVERING
        ):
            self.least = None
            return False
        left = _left(running, facts, evidence)
        begins = self.least is None or policy.epoch != self.epoch or now_ms < self.since_ms
        if begins or (self.least is not None and left < self.least):
            self.epoch, self.least, self.since_ms = policy.epoch, left, now_ms
        return now_ms - self.since_ms >= safety.stall_ms


def _left(running: OperationRef, facts: IdcFacts, evidence: Evidence) -> tuple[int, int]:
    """(sessions, records up to the marks) that the step waits for."""
    own = evidence.marks.get(running.idc, mark_of(facts))
    if running.kind != Kind.FAILBACK:
        return facts.sessions, sum(short(own.ends, a) for a in facts.peers_applied.values())
    others = [mark for name, mark in evidence.marks.items() if name != running.idc]
    behind = sum(short(mark.ends, facts.applied.get(mark.origin, ())) for mark in others)
    return 0, behind + min((short(own.ends, held) for held in facts.peers_held.values()), default=0)


def stalled(running: OperationRef, epoch: int, reason: str, by: str) -> Change:
    """The change that pauses an operation whose step comes no nearer."""
    return Change(
        Kind.STALL, running.idc, f"{running.id}/stall-{epoch}", by,
        operation=running.id, reason=reason,
    )  # fmt: skip


def left_halfway(policy: Policy, idc: str) -> str:
    """What is wrong with an IDC whose move was ended on the way (by a failover elsewhere, or by
    hand), and what to do; else empty. Nobody goes on by himself: what the move was planned on may
    no longer hold."""
    row, running = policy.idcs.get(idc), policy.operation
    if row is None or (running is not None and running.idc == idc):
        return ""
    if row.state is IdcState.ACTIVE and row.ramp < 100:
        return (
            f"{idc} is given {row.ramp} % of its clients and no failback of it is under way: "
            f"`imctl failback {idc}` goes on"
        )
    if row.state is IdcState.DRAINING:
        return (
            f"{idc} is draining and no drain of it is under way: `imctl drain {idc}` goes on, "
            f"`imctl undrain {idc}` takes it back"
        )
    return ""


def own_recovery(policy: Policy, own: str, boot: str, by: str) -> Change | None:
    """An IDC that finds itself failed says that it is back; traffic waits for a failback."""
    if policy.state(own) is not IdcState.FAILED:
        return None
    return Change(Kind.RECOVERING, own, f"recovering-{own}-{policy.epoch}-{boot}", by)
