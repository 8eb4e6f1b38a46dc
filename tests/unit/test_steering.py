"""Pause, resume and abort of operations: what is legal, what it leaves, what the record says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore.region.load import load_region
from imcore.region.model import FreezeWindow, Region
from services.control.evaluate import Decision, evaluate
from services.control.evidence import Evidence, IdcFacts, Mark
from services.control.follow import Progress, next_change, stalled
from services.control.operations import (
    Operation,
    Step,
    as_known,
    operation_from_json,
    with_step,
)
from services.control.rules import Change, Kind
from services.policy.document import (
    IdcPolicy,
    IdcState,
    OperationRef,
    OperationState,
    Policy,
    from_json,
    initial,
)

NOW = 1_700_000_000_000
IDCS = ("fra", "iad", "sin")
ENDS = (10, 10)
REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
SAFETY = REGION.spec.safety


def evidence(**fra: Any) -> Evidence:
    facts = {
        idc: IdcFacts(
            at_ms=NOW,
            origin=f"{idc}.1",
            ends=ENDS,
            applied={f"{name}.1": ENDS for name in IDCS},
            peers_held={name: ENDS for name in IDCS if name != idc},
            peers_applied={name: ENDS for name in IDCS if name != idc},
        )
        for idc in IDCS
    }
    facts["fra"] = replace(facts["fra"], **fra)
    marks = {idc: Mark(NOW, f"{idc}.1", ENDS, 0) for idc in IDCS}
    return Evidence(facts, (), IDCS, marks)


def decide(
    policy: Policy, kind: str, on: Evidence | None = None, within: Region = REGION, **fields: Any
) -> Decision:
    idc = fields.pop("idc", "")
    change = Change(kind, idc, f"{kind}-{policy.epoch}", "operator", **fields)
    return evaluate(policy, change, on or evidence(), within, NOW)


def committed(decision: Decision) -> Policy:
    assert decision.policy is not None, decision.sentence
    return decision.policy


def moving(kind: str = Kind.DRAIN) -> tuple[Policy, str]:
    """A policy with a move of fra under way, and its id."""
    start = initial(REGION, NOW - 60_000)
    if kind == Kind.FAILBACK:
        start = replace(start, idcs={**start.idcs, "fra": IdcPolicy(IdcState.DRAINED)})
    target = "sin" if kind == Kind.SWITCHOVER else ""
    policy = committed(decide(start, kind, idc="fra", target=target))
    if kind == Kind.FAILBACK:
        policy = committed(decide(policy, Kind.RAMP, idc="fra", ramp=10))
    assert policy.operation is not None
    return policy, policy.operation.id


def refused_as(decision: Decision) -> dict[str, str]:
    assert decision.policy is None, decision.sentence
    return {blocker.rule: blocker.measured for blocker in decision.blockers}


@pytest.mark.parametrize("kind", [Kind.DRAIN, Kind.SWITCHOVER, Kind.FAILBACK])
def test_a_paused_move_takes_no_step_until_it_is_resumed(kind: str) -> None:
    policy, name = moving(kind)
    paused = committed(decide(policy, Kind.PAUSE, operation=name))
    assert paused.operation == replace(policy.operation, state=OperationState.PAUSED)  # type: ignore[type-var]
    assert paused.idcs == policy.idcs
    assert paused.epoch == policy.epoch + 1
    assert next_change(paused, NOW + 60_000, "controller iad") is None
    step = Kind.RAMP if kind == Kind.FAILBACK else Kind.DRAINED
    assert refused_as(decide(paused, step, idc="fra", ramp=50)) == {
        "transition": f"{name} is paused by operator"
    }
    resumed = committed(decide(paused, Kind.RESUME, operation=name))
    assert resumed.operation == policy.operation
    committed(decide(resumed, step, idc="fra", ramp=50))


def test_a_resume_is_judged_as_its_move_would_be_now() -> None:
    policy, name = moving(Kind.SWITCHOVER)
    paused = committed(decide(policy, Kind.PAUSE, operation=name))
    frozen = SAFETY.model_copy(
        update={"freeze": [FreezeWindow(start="2023-11-01T00:00:00Z", end="2023-12-01T00:00:00Z")]}
    )
    region = REGION.model_copy(update={"spec": REGION.spec.model_copy(update={"safety": frozen})})
    on = evidence(at_ms=NOW - 9_000, lag_ms={"iad.1": 6_000}, sessions=9_000)
    found = refused_as(decide(paused, Kind.RESUME, on, region, operation=name))
    # 9,000 sessions: too many for the target alone, which is remembered.
    assert set(found) == {"freeze-window", "replication-lag", "evidence-age", "headroom"}
    committed(decide(policy, Kind.PAUSE, on, region, operation=name))  # nothing forbids a pause


def test_an_abort_takes_a_drain_back_with_the_share_that_the_idc_had() -> None:
    policy, name = moving(Kind.SWITCHOVER)
    back = committed(decide(policy, Kind.ABORT, operation=name))
    assert back.operation is None
    assert (back.idcs["fra"].state, back.idcs["fra"].ramp) == (IdcState.ACTIVE, 100)
    assert back.idcs["fra"].target == ""
    lagging = evidence(lag_ms={"iad.1": 6_000})  # the rules of an undrain
    assert set(refused_as(decide(policy, Kind.ABORT, lagging, operation=name))) == {
        "replication-lag"
    }
    over = decide(policy, Kind.ABORT, lagging, operation=name, overrides=("replication-lag",))
    assert committed(over).operation is None


def test_an_abort_of_a_failback_leaves_who_is_back_and_it_can_go_on_later() -> None:
    policy, name = moving(Kind.FAILBACK)
    stopped = committed(decide(policy, Kind.ABORT, operation=name))
    assert stopped.operation is None
    assert (stopped.idcs["fra"].state, stopped.idcs["fra"].ramp) == (IdcState.ACTIVE, 10)
    again = committed(decide(stopped, Kind.FAILBACK, idc="fra"))
    assert again.idcs["fra"].ramp == 10


def test_only_the_operation_under_way_is_steered_and_only_from_a_state_that_fits() -> None:
    idle = initial(REGION, NOW)
    assert (
        "no operation is under way"
        in refused_as(decide(idle, Kind.PAUSE, operation="x"))["transition"]
    )
    policy, name = moving()
    for kind in (Kind.PAUSE, Kind.ABORT):
        found = refused_as(decide(policy, kind, operation="drain-fra-99"))
        assert found["transition"] == f"{name} is under way"
    assert refused_as(decide(policy, Kind.RESUME, operation=name)) == {
        "transition": f"{name} is running"
    }
    paused = committed(decide(policy, Kind.PAUSE, operation=name))
    assert "transition" in refused_as(decide(paused, Kind.PAUSE, operation=name))


def test_a_request_to_steer_resolves_to_its_first_outcome() -> None:
    policy, name = moving()
    change = Change(Kind.PAUSE, "", "r9", "operator", operation=name)
    first = evaluate(policy, change, evidence(), REGION, NOW)
    again = evaluate(committed(first), change, Evidence(), REGION, NOW + 60_000)
    assert again.repeated
    assert (again.sentence, again.operation) == (first.sentence, name)


def test_the_state_of_an_operation_survives_the_policys_json_and_old_ones_are_running() -> None:
    policy, name = moving()
    paused = committed(decide(policy, Kind.PAUSE, operation=name))
    assert from_json(paused.to_json()) == paused
    assert from_json(paused.to_json()).operation.paused  # type: ignore[union-attr]
    older = paused.to_json().replace(b',"state":"paused by operator"', b"")
    running = from_json(older).operation
    assert running is not None and running.state is OperationState.RUNNING


def test_a_tighter_lag_holds_for_the_move_its_steps_and_its_resume() -> None:
    slow = evidence(lag_ms={"iad.1": 800})
    start = initial(REGION, NOW - 60_000)
    drained = replace(start, idcs={**start.idcs, "fra": IdcPolicy(IdcState.DRAINED)})
    assert set(refused_as(decide(start, Kind.DRAIN, slow, idc="fra", max_lag_ms=799))) == {
        "replication-lag"
    }
    committed(decide(start, Kind.DRAIN, slow, idc="fra", max_lag_ms=800))
    committed(decide(start, Kind.DRAIN, slow, idc="fra"))
    wide = evidence(lag_ms={"iad.1": 5_001})  # it tightens only
    assert decide(start, Kind.DRAIN, wide, idc="fra", max_lag_ms=9_000).policy is None

    back = committed(decide(drained, Kind.FAILBACK, idc="fra", max_lag_ms=500, rate=7))
    assert back.operation is not None
    assert (back.operation.max_lag_ms, back.operation.rate) == (500, 7)
    assert from_json(back.to_json()) == back
    step = decide(back, Kind.RAMP, slow, idc="fra", ramp=10)
    assert set(refused_as(step)) == {"replication-lag"}
    committed(decide(back, Kind.RAMP, evidence(lag_ms={"iad.1": 400}), idc="fra", ramp=10))

    drain = committed(decide(start, Kind.DRAIN, idc="fra", max_lag_ms=500))
    name = drain.history[-1]
    paused = committed(decide(drain, Kind.PAUSE, operation=name))
    assert "replication-lag" in refused_as(decide(paused, Kind.RESUME, slow, operation=name))


# -------------------------------------------------------------------------------- approval


def with_approval(**safety: Any) -> Region:
    update = {"approval": ["drain", "switchover", "failback"], **safety}
    changed = SAFETY.model_copy(update=update)
    return REGION.model_copy(update={"spec": REGION.spec.model_copy(update={"safety": changed})})


@pytest.mark.parametrize("kind", [Kind.DRAIN, Kind.SWITCHOVER, Kind.FAILBACK])
def test_a_move_that_needs_approval_changes_nothing_until_it_has_it(kind: str) -> None:
    start = initial(REGION, NOW - 60_000)
    if kind == Kind.FAILBACK:
        start = replace(start, idcs={**start.idcs, "fra": IdcPolicy(IdcState.RECOVERING)})
    target = "sin" if kind == Kind.SWITCHOVER else ""
    begun = decide(start, kind, within=with_approval(), idc="fra", target=target, rate=9)
    waiting = committed(begun)
    assert begun.sentence.endswith("waiting for approval")
    assert waiting.idcs == start.idcs
    assert waiting.operation is not None
    assert waiting.operation.state is OperationState.AWAITING
    assert next_change(waiting, NOW + 60_000, "controller iad") is None
    step = Kind.RAMP if kind == Kind.FAILBACK else Kind.DRAINED
    assert "transition" in refused_as(decide(waiting, step, idc="fra", ramp=10))
    name = waiting.operation.id
    for steered in (Kind.PAUSE, Kind.RESUME):
        assert "transition" in refused_as(decide(waiting, steered, operation=name))

    approved = committed(decide(waiting, Kind.APPROVE, within=with_approval(), operation=name))
    at_once = committed(decide(start, kind, idc="fra", target=target, rate=9))
    assert approved.idcs == at_once.idcs
    assert approved.operation == replace(waiting.operation, state=OperationState.RUNNING)
    assert "transition" in refused_as(decide(approved, Kind.APPROVE, operation=name))


def test_an_approval_is_judged_anew_and_an_abort_of_what_waits_moves_nobody() -> None:
    start = initial(REGION, NOW - 60_000)
    waiting = committed(decide(start, Kind.DRAIN, within=with_approval(), idc="fra"))
    name = waiting.history[-1]
    slow = evidence(lag_ms={"iad.1": 6_000})
    found = refused_as(decide(waiting, Kind.APPROVE, slow, operation=name))
    assert set(found) == {"replication-lag"}
    gone = replace(waiting, idcs={**waiting.idcs, "fra": IdcPolicy(IdcState.RETIRED)})
    assert "transition" in refused_as(decide(gone, Kind.APPROVE, operation=name))
    aborted = committed(decide(waiting, Kind.ABORT, slow, operation=name))  # no rule is in its way
    assert aborted.operation is None
    assert aborted.idcs["fra"].state is IdcState.ACTIVE
    assert aborted.idcs["fra"].moved_ms == 0


def test_what_is_not_listed_needs_no_approval() -> None:
    region = with_approval(approval=["failback"])
    drained = committed(decide(initial(REGION, NOW), Kind.DRAIN, within=region, idc="fra"))
    assert drained.idcs["fra"].state is IdcState.DRAINING


# --------------------------------------------------------------------------- a failed step


def stalls(progress: Progress, policy: Policy, on: Evidence, after_s: float) -> bool:
    seen = {name: replace(f, at_ms=NOW + int(after_s * 1000)) for name, f in on.idcs.items()}
    return progress.stalls(policy, replace(on, idcs=seen), SAFETY, NOW + int(after_s * 1000))


def test_a_step_that_comes_no_nearer_is_stalled_and_one_that_does_is_not() -> None:
    policy, _ = moving()
    progress = Progress()
    for second in range(0, 200, 5):  # one session a time
        assert not stalls(progress, policy, evidence(sessions=300 - second), second)
    assert not stalls(progress, policy, evidence(sessions=105), 250.0)
    assert stalls(progress, policy, evidence(sessions=105), 256.0)
    assert stalls(progress, policy, evidence(sessions=110), 257.0)
    assert not stalls(progress, policy, evidence(sessions=104), 258.0)


def test_a_drained_log_that_is_being_applied_is_progress() -> None:
    policy, _ = moving()
    progress = Progress()
    behind = evidence(peers_applied={"iad": (10, 10), "sin": (3, 10)})
    nearer = evidence(peers_applied={"iad": (10, 10), "sin": (4, 10)})
    assert not stalls(progress, policy, behind, 0.0)
    assert not stalls(progress, policy, nearer, 59.0)
    assert not stalls(progress, policy, nearer, 100.0)
    assert stalls(progress, policy, nearer, 119.0)


def test_who_does_not_hear_the_idc_stalls_nothing_and_catching_up_takes_its_time() -> None:
    policy, _ = moving()
    progress = Progress()
    old = evidence(sessions=5)
    assert not progress.stalls(policy, old, SAFETY, NOW)
    assert not progress.stalls(policy, old, SAFETY, NOW + 90_000)  # its facts are 90 s old
    policy, _ = moving(Kind.FAILBACK)
    rows = {**policy.idcs, "fra": IdcPolicy(IdcState.RECOVERING)}
    recovering = replace(policy, idcs=rows)
    assert not stalls(progress, recovering, evidence(), 0.0)
    assert not stalls(progress, recovering, evidence(), 9_000.0)
    assert not stalls(progress, policy, evidence(), 9_000.0)
    assert stalls(progress, policy, evidence(), 9_060.0)


def test_a_stall_pauses_by_the_controllers_word_once_an_epoch_and_can_be_resumed() -> None:
    policy, name = moving()
    assert policy.operation is not None
    change = stalled(policy.operation, policy.epoch, "fra has 3 sessions", "controller iad")
    decision = evaluate(policy, change, evidence(), REGION, NOW)
    paused = committed(decision)
    assert paused.operation is not None
    assert paused.operation.state is OperationState.STALLED
    assert "fra has 3 sessions" in decision.sentence
    same = stalled(policy.operation, policy.epoch, "other words", "controller sin")
    assert evaluate(paused, same, evidence(), REGION, NOW).repeated
    resumed = committed(decide(paused, Kind.RESUME, operation=name))
    assert resumed.operation == policy.operation


# -------------------------------------------------------------------------------- records


def record(state: OperationState = OperationState.RUNNING, name: str = "drain-fra-2") -> Operation:
    return Operation(name, "drain", "fra", "", "operator", "r", state, NOW)


def test_the_newest_step_says_the_state_whatever_order_they_are_written_in() -> None:
    opened = record()
    late, early = Step(NOW + 9, 4, "resumed", {}), Step(NOW + 5, 3, "paused", {})
    first = with_step(None, opened, late, OperationState.RUNNING)
    both = operation_from_json(with_step(first, opened, early, OperationState.PAUSED))
    assert [step.epoch for step in both.steps] == [3, 4]
    assert both.state is OperationState.RUNNING
    paused = with_step(
        with_step(None, opened, early, OperationState.PAUSED), opened, late, OperationState.ABORTED
    )
    ended = operation_from_json(paused)
    assert (ended.state, ended.ended_ms) == (OperationState.ABORTED, NOW + 9)
    more = with_step(paused, opened, Step(NOW + 12, 6, "x", {}), OperationState.RUNNING)
    assert operation_from_json(more).state is OperationState.ABORTED


def test_the_policy_has_the_last_word_on_what_is_under_way() -> None:
    policy, name = moving()
    paused = committed(decide(policy, Kind.PAUSE, operation=name))
    assert as_known(name, None, paused, NOW).state is OperationState.PAUSED  # type: ignore[union-attr]
    assert as_known(name, record(), paused, NOW).state is OperationState.PAUSED  # type: ignore[union-attr]


def test_an_end_that_nobody_recorded_is_found_in_the_policy_or_said_to_be_unknown() -> None:
    policy, name = moving()
    over = evaluate(
        policy, Change(Kind.DRAINED, "fra", f"{name}/drained", "controller iad"), evidence(),
        REGION, NOW,
    )  # fmt: skip
    left = record(name=name)
    for known in (left, None):
        found = as_known(name, known, committed(over), NOW + 4_999)
        assert found is not None and found.state is OperationState.RUNNING
        found = as_known(name, known, committed(over), NOW + 5_000)
        assert found is not None and found.state is OperationState.DONE
    aborted = committed(decide(policy, Kind.ABORT, operation=name))
    soon, later = (as_known(name, left, aborted, NOW + ms) for ms in (4_999, 5_000))
    assert soon is not None and soon.state is OperationState.RUNNING  # it may be on its way
    assert later is not None and later.state is OperationState.UNKNOWN
    lost = as_known(name, None, aborted, NOW + 5_000)
    assert lost is not None and (lost.state, lost.idc) == (OperationState.UNKNOWN, "fra")
    assert as_known("drain-fra-1", None, aborted, NOW) is None
    ended = record(OperationState.FAILED, name)
    assert as_known(name, ended, aborted, NOW + 9_000) == ended


def test_an_operation_ref_knows_whether_it_is_paused() -> None:
    ref = OperationRef("x", Kind.DRAIN, "fra", "", "operator", "r", NOW)
    paused = {state for state in OperationState if replace(ref, state=state).paused}
    assert paused == {OperationState.PAUSED, OperationState.STALLED}
