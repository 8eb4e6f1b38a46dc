"""Pause, resume, abort and approval of the operation under way; pure.

A pause moves nobody, so no safety rule speaks against it. A resume is judged as its move would be
if it began now, an abort of a drain as the `undrain` that it is. An abort of a failback stops it
where it is: who is back stays, `failback` goes on later, and `drain` takes them away again. A move
that waits for approval has changed nothing yet: it is judged again when it is approved.
"""

from __future__ import annotations

from dataclasses import replace

from services.control.rules import Change, Kind
from services.policy.document import (
    PAUSES,
    IdcPolicy,
    IdcState,
    OperationRef,
    OperationState,
    Policy,
)

KINDS = frozenset({Kind.PAUSE, Kind.STALL, Kind.RESUME, Kind.ABORT, Kind.APPROVE})
STEPS = frozenset({Kind.DRAINED, Kind.RAMP})  # what controllers bring an operation on by
_RUNNING = frozenset({OperationState.RUNNING})
_AWAITING = frozenset({OperationState.AWAITING})
_WHEN = {
    Kind.PAUSE: _RUNNING,
    Kind.STALL: _RUNNING,
    Kind.RESUME: PAUSES,
    Kind.ABORT: _RUNNING | PAUSES | _AWAITING,
    Kind.APPROVE: _AWAITING,
}
_BECOMES = {
    Kind.PAUSE: OperationState.PAUSED,
    Kind.STALL: OperationState.STALLED,
    Kind.RESUME: OperationState.RUNNING,
    Kind.APPROVE: OperationState.RUNNING,
}


def completed(policy: Policy, change: Change) -> Change:
    """The change with what follows from its operation: for a pause or the like its IDC and its
    target, for a step how little the replication may lag."""
    running = policy.operation
    if running is None:
        return change
    if change.kind in KINDS:
        return replace(change, idc=running.idc, target=running.target)
    if change.kind in STEPS and change.idc == running.idc:
        return replace(change, max_lag_ms=running.max_lag_ms)
    return change


def misfit(policy: Policy, change: Change) -> tuple[str, str] | None:
    """(what is, what was expected), if the change does not fit the operation under way."""
    running = policy.operation
    if running is None or running.id != change.operation:
        other = f"{running.id} is under way" if running else "no operation is under way"
        return other, f"{change.operation or 'an operation'} under way"
    if running.state not in _WHEN[change.kind]:
        return f"{running.id} is {running.state}", " or ".join(sorted(_WHEN[change.kind]))
    return None


def judged_as(running: OperationRef, change: Change) -> Change | None:
    """Whose rules this has to pass; None: no rule speaks about it."""
    if change.kind in (Kind.RESUME, Kind.APPROVE):
        return replace(change, kind=running.kind, max_lag_ms=running.max_lag_ms)
    has_begun = running.state is not OperationState.AWAITING
    if change.kind == Kind.ABORT and running.kind != Kind.FAILBACK and has_begun:
        return replace(change, kind=Kind.UNDRAIN, target="")
    return None


def steered(
    running: OperationRef, change: Change, row: IdcPolicy, now_ms: int
) -> tuple[OperationRef | None, IdcPolicy]:
    """The operation and its IDC's row after the change; an approval begins the move as well."""
    if change.kind != Kind.ABORT:
        return replace(running, state=_BECOMES[change.kind]), row
    if running.kind == Kind.FAILBACK or running.state is OperationState.AWAITING:
        return None, replace(row, since_ms=now_ms)
    return None, replace(row, state=IdcState.ACTIVE, target="", since_ms=now_ms, moved_ms=now_ms)
