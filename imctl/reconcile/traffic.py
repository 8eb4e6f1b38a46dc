"""What a TrafficOperation asks for, and what is said of it. Pure: the shell asks and looks.

Its object's uid is the id of the request, so the policy itself, which knows the last requests, says
whether it was asked for already: an operator that died after it had asked asks the same again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from imcore.errors import ImError
from imcore.region.model import Region
from imctl.api.kinds import TRAFFIC_OPERATION
from imctl.api.operation import (
    IdcEvidence,
    RefusalStatus,
    RunPhase,
    StepStatus,
    TrafficOperationSpec,
    TrafficOperationStatus,
)
from imctl.opwatch import conclude
from imctl.reconcile.observed import Owner
from services.control.evaluate import Decision
from services.control.operations import UNDER_WAY, Operation, Step
from services.control.rules import Blocker, Change
from services.policy.document import REQUESTS_MAX, OperationState, Policy

STEPS_MAX = 50
Status = TrafficOperationStatus


BY = f"{TRAFFIC_OPERATION.name} "
FOR = ", for "  # before whom it was asked for


def change_of(owner: Owner, spec: TrafficOperationSpec) -> Change:
    asker = f"{FOR}{spec.asked_by}" if spec.asked_by else ""
    return Change(
        kind=spec.move,
        idc=spec.idc,
        request_id=owner.uid,
        by=f"{BY}{owner.namespace}/{owner.name}{asker}",
        target=spec.target or "",
        expect_epoch=spec.expect_epoch,
        overrides=tuple(spec.overrides),
        max_lag_ms=spec.max_lag_ms,
        rate=spec.rate,
    )


def object_of(by: str) -> str:
    """NAMESPACE/NAME of the object by which an operation was asked for; empty: by none."""
    return by.removeprefix(BY).partition(FOR)[0] if by.startswith(BY) else ""


def misfits(spec: TrafficOperationSpec, region: Region) -> list[Blocker]:
    """What in the wish itself is wrong for this region, whatever its policy is."""
    names = [idc.name for idc in region.spec.idcs]
    found = []
    for field, name in (("idc", spec.idc), ("target", spec.target)):
        if name is not None and name not in names:
            expected = f"one of {', '.join(names)}"
            found.append(_misfit(field, name, expected))
    limit = region.spec.safety.replication_lag_ms_max
    if spec.max_lag_ms > limit:
        found.append(_misfit("max_lag_ms", str(spec.max_lag_ms), f"at most {limit}"))
    return found


def _misfit(field: str, got: str, expected: str) -> Blocker:
    return Blocker(f"spec.{field}", got, expected, f"spec.{field}: expected {expected}, got {got}")


def may_be_forgotten(policy: Policy, request_id: str, asked_at: int) -> bool:
    """Of a request that may have been decided since the policy was at that epoch: whether so much
    has changed since that the policy would no longer know of it."""
    return policy.outcome(request_id) is None and policy.epoch - asked_at >= REQUESTS_MAX


# --------------------------------------------------------------------------- what is said


def waiting(before: Status, generation: int, why: Sequence[str]) -> Status:
    """It is not asked, or not followed, for these reasons; what is known of it stays."""
    update = {"blocked_by": list(why), "observed_generation": generation}
    return before.model_copy(update={"phase": before.phase or RunPhase.WAITING, **update})


def asking(before: Status, generation: int, epoch: int) -> Status:
    return before.model_copy(
        update={
            "phase": RunPhase.ASKING, "epoch": epoch, "blocked_by": [],
            "observed_generation": generation,
        }
    )  # fmt: skip


def refused(before: Status, sentence: str, blockers: Iterable[Blocker]) -> Status:
    listed = [RefusalStatus.model_validate(each._asdict()) for each in blockers]
    return before.model_copy(
        update={
            "phase": RunPhase.REFUSED, "outcome": sentence, "blocked_by": [], "blockers": listed,
        }
    )  # fmt: skip


def begun(before: Status, decision: Decision) -> Status:
    return before.model_copy(
        update={
            "phase": RunPhase.RUNNING, "operation": decision.operation, "blocked_by": [],
            "outcome": decision.sentence,
        }
    )  # fmt: skip


def lost(before: Status) -> Status:
    """Nobody can tell any more whether it was begun."""
    sentence = (
        f"it was asked for at epoch {before.epoch}, and so much has changed since that nobody can "
        "tell whether it was begun; `imctl op list` and `imctl audit` may show it"
    )
    state = str(OperationState.UNKNOWN)
    return before.model_copy(
        update={"phase": RunPhase.ENDED, "state": state, "outcome": sentence, "blocked_by": []}
    )


def followed(before: Status, operation: Operation, final: bool) -> Status:
    """``final``: an unknown end is taken for one."""
    ended = operation.state not in UNDER_WAY and (
        final or operation.state is not OperationState.UNKNOWN
    )
    took = operation.ended_ms - operation.started_ms if operation.ended_ms else None
    outcome = before.outcome
    if ended:
        outcome = _concluded(operation)
    elif operation.steps:
        outcome = operation.steps[-1].sentence
    return before.model_copy(
        update={
            "phase": RunPhase.ENDED if ended else RunPhase.RUNNING,
            "operation": operation.id,
            "state": str(operation.state),
            "outcome": outcome,
            "blocked_by": [],
            "started": _time(operation.started_ms),
            "ended": _time(operation.ended_ms),
            "took_ms": took,
            "steps": list(_steps(operation))[-STEPS_MAX:],
        }
    )


def _concluded(operation: Operation) -> str:
    try:
        return conclude(operation)
    except ImError as error:
        return str(error)


def _steps(operation: Operation) -> Iterator[StepStatus]:
    ends = [step.at_ms for step in operation.steps[1:]]
    ends.append(operation.ended_ms)
    for step, end in zip(operation.steps, ends, strict=False):
        evidence = step.evidence
        yield StepStatus(
            at=_time(step.at_ms),
            epoch=step.epoch,
            name=step.name,
            sentence=step.sentence,
            took_ms=end - step.at_ms if end else None,
            evidence=list(_evidence(step)),
            votes=[f"{each['voter']}: {each['said']}" for each in evidence.get("votes", ())],
            overridden=[
                f"{each['rule']}: {each['sentence']}" for each in evidence.get("overridden", ())
            ],
        )


def _evidence(step: Step) -> Iterator[IdcEvidence]:
    idcs: Mapping[str, Any] = step.evidence.get("idcs", {})
    for name, facts in sorted(idcs.items()):
        yield IdcEvidence(
            idc=name,
            serving=facts["serving"],
            sessions=facts["sessions"],
            closed=facts.get("closed", 0),
            lag_ms=max(facts.get("lag_ms", {}).values(), default=0),
            age_ms=facts["age_ms"],
        )


def _time(ms: int) -> str:
    """RFC 3339; empty for 0, which is no time."""
    if not ms:
        return ""
    text = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def news(before: Status, after: Status) -> Iterator[tuple[str, str, bool]]:
    """(reason, sentence, whether it is a warning) of each Event."""
    if after.blocked_by and after.blocked_by != before.blocked_by:
        yield "Waiting", "; ".join(after.blocked_by), True
    if after.phase is RunPhase.REFUSED and before.phase is not RunPhase.REFUSED:
        yield "Refused", after.outcome, True
    known = before.steps[-1].epoch if before.steps else 0
    for step in after.steps:
        if step.epoch > known:
            yield "Step", step.sentence, False
    if after.phase is RunPhase.ENDED and before.phase is not RunPhase.ENDED:
        done = after.state == OperationState.DONE
        yield "Done" if done else "NotDone", after.outcome, not done
