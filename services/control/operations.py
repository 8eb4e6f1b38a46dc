"""One record per operation (CASPaxos key ``op/<id>``), and an audit event for each decision."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from imcore.errors import ImError
from imcore.region.model import Region
from imcore.runtime import Clock
from imcore.sometimes import FAILED_OVER, sometimes
from services.control.caspaxos import Proposer
from services.control.divergence import as_document, compare
from services.control.evaluate import Decision, evaluate
from services.control.evidence import Evidence
from services.control.follow import LAST_STEPS
from services.control.rules import Change, Kind
from services.policy.document import (
    PAUSES,
    POLICY_KEY,
    OperationRef,
    OperationState,
    Policy,
    first_problem,
    from_json,
    initial,
)

log = logging.getLogger("im.control")
audit_log = logging.getLogger("im.audit")


UNDER_WAY = PAUSES | {OperationState.RUNNING, OperationState.AWAITING}
RECORDED_MS = 5_000  # a record is written right behind its commit, by who made that


@dataclass(frozen=True, slots=True)
class Step:
    """``name``: what is done from then on, alike in all operations (``drain``, ``ramp-10``,
    ``pause``); empty in records of before it was kept."""

    at_ms: int
    epoch: int  # of the policy that the step committed
    sentence: str
    evidence: Mapping[str, Any]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    id: str
    kind: str
    idc: str
    target: str
    by: str
    request_id: str
    state: OperationState
    started_ms: int
    ended_ms: int = 0
    steps: tuple[Step, ...] = ()
    rate: int = 0  # as in OperationRef
    max_lag_ms: int = 0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()


class Blocked(ImError):
    """The evaluator refused; carries its decision."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.sentence)
        self.decision = decision


def operation_key(operation_id: str) -> str:
    return f"op/{operation_id}"


def operation_from_json(data: bytes) -> Operation:
    """Raises ValueError, also for the empty record of an operation that is long past."""
    try:
        return _OPERATION.validate_json(data, strict=True)
    except ValidationError as error:
        raise ValueError(f"not an operation record: {first_problem(error)}") from error


_OPERATION = TypeAdapter(Operation)


def with_step(current: bytes | None, opened: Operation, step: Step, state: OperationState) -> bytes:
    """The record with the step; a step of an epoch that it has already is not added twice. The
    newest step says what the state is; what has ended goes on no more."""
    operation = operation_from_json(current) if current else opened
    if any(known.epoch == step.epoch for known in operation.steps):
        return operation.to_json()
    steps = tuple(sorted((*operation.steps, step), key=lambda each: each.epoch))
    if operation.state not in UNDER_WAY or (state in UNDER_WAY and steps[-1] is not step):
        return replace(operation, steps=steps).to_json()
    ended = 0 if state in UNDER_WAY else step.at_ms
    return replace(operation, steps=steps, state=state, ended_ms=ended).to_json()


class Offered(NamedTuple):
    """What one evaluation came to, and the policy that it was made on."""

    before: Policy
    decision: Decision


async def commit(
    proposer: Proposer,
    region: Region,
    change: Change,
    evidence: Evidence,
    clock: Clock,
    offered: dict[str, Offered] | None = None,
) -> Decision:
    """Judge and commit one change; the only way to change the policy. A refusal is a Decision
    without a policy. Raises Unavailable, and OutcomeUnknown: then the same request id resolves.
    ``offered``: kept by who asks again then, so that what was committed meanwhile is known as its
    own."""
    offered = {} if offered is None else offered  # by its sentence, which names epoch and asker
    decided: list[Decision] = []

    def fn(current: bytes | None) -> bytes:
        policy = from_json(current) if current else initial(region, clock.wall_ms())
        decision = evaluate(policy, change, evidence, region, clock.wall_ms())
        decided[:] = [decision]
        if decision.policy is None:
            raise Blocked(decision)
        if not decision.repeated:
            offered[decision.sentence] = Offered(policy, decision)
        return decision.policy.to_json()

    try:
        await proposer.change(POLICY_KEY, fn)
    except Blocked as error:
        audit(change, error.decision, evidence, clock.wall_ms())
        return error.decision
    # An offer of which no answer came may stand all the same: then a later round finds it there,
    # as a request that was decided before, and its record is still to be written.
    own = offered.get(decided[0].sentence)
    decision = own.decision if own is not None else decided[0]
    audit(change, decision, evidence, clock.wall_ms())
    if own is not None:
        if change.kind == Kind.FAILOVER:
            sometimes(FAILED_OVER)
        await _record(proposer, change, own.before, decision, evidence, clock.wall_ms())
    return decision


async def _record(
    proposer: Proposer,
    change: Change,
    before: Policy,
    decision: Decision,
    evidence: Evidence,
    now_ms: int,
) -> None:
    """The policy is committed already; a record that cannot be written now is only logged."""
    assert decision.policy is not None
    epoch = decision.policy.epoch
    step = Step(
        now_ms,
        epoch,
        decision.sentence,
        summary(change, decision, evidence, now_ms),
        step_name(change, before, decision.policy),
    )
    writes: list[tuple[Operation, OperationState]] = []
    running = before.operation
    if running is not None:
        state = _state_after(running, change, decision.policy, evidence)
        writes.append((_blank(running), state))
    if decision.operation and (running is None or decision.operation != running.id):
        begun = decision.policy.operation
        state = OperationState.DONE if begun is None else begun.state  # a failover ends at once
        opened = Operation(
            decision.operation,
            change.kind,
            change.idc,
            change.target,
            change.by,
            change.request_id,
            OperationState.RUNNING,
            now_ms,
            rate=change.rate,
            max_lag_ms=change.max_lag_ms,
        )
        writes.append((opened, state))
    for opened, state in writes:
        try:
            await proposer.change(
                operation_key(opened.id),
                lambda current, opened=opened, state=state: with_step(  # type: ignore[misc]
                    current, opened, step, state
                ),
            )
        except ImError as error:
            log.warning("the record of %s could not be written: %s", opened.id, error)
    for forgotten in sorted(set(before.history) - set(decision.policy.history)):
        await _forget(proposer, forgotten)


def step_name(change: Change, before: Policy, after: Policy) -> str:
    """A move that is approved begins then; until then it waits for people."""
    if change.kind == Kind.RAMP:
        return f"{change.kind}-{change.ramp}"
    if change.kind == Kind.APPROVE and before.operation is not None:
        return before.operation.kind
    left = after.operation
    if left != before.operation and left is not None and left.state is OperationState.AWAITING:
        return "approval"
    return change.kind


def _blank(ref: OperationRef) -> Operation:
    """The record of an operation of which nothing else is known."""
    return Operation(
        ref.id,
        ref.kind,
        ref.idc,
        ref.target,
        ref.by,
        ref.request_id,
        OperationState.RUNNING,
        ref.started_ms,
        rate=ref.rate,
        max_lag_ms=ref.max_lag_ms,
    )


def _state_after(
    ref: OperationRef, change: Change, policy: Policy, evidence: Evidence
) -> OperationState:
    """What became of the operation ``ref`` by a change; ``policy``: the one behind it."""
    left = policy.operation
    if left is not None and left.id == ref.id:
        return left.state
    if change.kind in (Kind.UNDRAIN, Kind.ABORT):
        return OperationState.ABORTED
    if change.kind == Kind.FAILOVER or left is not None:  # the latter by an override
        return OperationState.FAILED
    facts = evidence.idcs.get(ref.idc)
    forced = change.kind == Kind.DRAINED and facts is not None and facts.closed > 0
    return OperationState.EXCEPTIONS if forced else OperationState.DONE


def as_known(name: str, record: Operation | None, policy: Policy, now_ms: int) -> Operation | None:
    """The operation as record and policy together show it. The policy is committed first and has
    the last word; a record that nobody finished (its writer died) is completed from it, as far as
    the policy remembers. None: no such operation, or one that is long past."""
    running = policy.operation
    if running is not None and running.id == name:
        return replace(record or _blank(running), state=running.state)
    if record is not None and record.state not in UNDER_WAY:
        return record
    if record is None and name not in policy.history:
        return None
    kind, _, rest = name.partition("-")
    idc = rest.rpartition("-")[0]
    known = record or Operation(name, kind, idc, "", "", "", OperationState.RUNNING, 0)
    changed_ms = max((row.since_ms for row in policy.idcs.values()), default=0)
    if now_ms - changed_ms < RECORDED_MS:  # its end may be on its way
        return known
    done = kind == Kind.FAILOVER or any(policy.outcome(f"{name}/{last}") for last in LAST_STEPS)
    return replace(known, state=OperationState.DONE if done else OperationState.UNKNOWN)


async def _forget(proposer: Proposer, operation_id: str) -> None:
    """Old records are emptied: a bucket travels whole with each change of what lies in it."""
    try:
        await proposer.change(operation_key(operation_id), lambda _: b"")
    except ImError as error:
        log.warning("the old record of %s could not be emptied: %s", operation_id, error)


def audit(change: Change, decision: Decision, evidence: Evidence, now_ms: int) -> None:
    """One JSON line on the logger ``im.audit``."""
    audit_log.info(
        "%s",
        json.dumps(
            {
                "at_ms": now_ms,
                "decision": "refused" if decision.policy is None else "committed",
                "repeated": decision.repeated,
                "sentence": decision.sentence,
                **_asked(change),
                "operation": decision.operation,
                "blockers": [blocker._asdict() for blocker in decision.blockers],
                "evidence": summary(change, decision, evidence, now_ms),
                "policy": became(decision.policy) if decision.policy else None,
            }
        ),
    )


def became(policy: Policy) -> dict[str, Any]:
    """What stands in it, without what it remembers of former changes: those are noted too."""
    operation = policy.operation
    return {
        "epoch": policy.epoch,
        "idcs": {name: asdict(row) for name, row in policy.idcs.items()},
        "operation": asdict(operation) if operation is not None else None,
    }


def audit_unknown(change: Change, error: ImError, now_ms: int) -> None:
    """Of a change of which nobody can tell whether it was committed."""
    row = {"at_ms": now_ms, "decision": "unknown", "sentence": str(error), **_asked(change)}
    audit_log.info("%s", json.dumps(row))


def _asked(change: Change) -> dict[str, Any]:
    return {
        "request_id": change.request_id,
        "by": change.by,
        "kind": change.kind,
        "idc": change.idc,
        "target": change.target,
    }


def summary(change: Change, decision: Decision, evidence: Evidence, now_ms: int) -> dict[str, Any]:
    """The observations that the decision rests on, small enough to keep."""
    known = decision.policy.idcs if decision.policy else evidence.idcs
    returns = change.kind in (Kind.FAILBACK, Kind.RAMP)
    divergence = (
        {"divergence": as_document(compare(evidence, change.idc, known))} if returns else {}
    )
    return {
        **divergence,
        "idcs": {
            name: {
                "age_ms": now_ms - facts.at_ms,
                "serving": facts.serving,
                "sessions": facts.sessions,
                "closed": facts.closed,
                "stuck": dict(facts.stuck),
                "lag_ms": dict(facts.lag_ms),
            }
            for name, facts in evidence.idcs.items()
        },
        "votes": [
            {
                "voter": vote.voter,
                "held_ms": vote.held_ms + now_ms - vote.at_ms,
                "said": vote.sentence,
            }
            for vote in evidence.votes
            if vote.accused == change.idc
        ],
        "overridden": [blocker._asdict() for blocker in decision.overridden],
    }
