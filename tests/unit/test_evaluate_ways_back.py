"""From every state that an IDC can come to, however half-way, a legal path leads back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imcore.region.load import load_region
from services.control.evaluate import evaluate
from services.control.evidence import Evidence, IdcFacts, Mark, Vote
from services.control.follow import next_change
from services.control.rules import Change, Kind
from services.policy.document import IdcPolicy, IdcState, OperationRef, Policy, initial

NOW = 1_700_000_000_000
IDCS = ("fra", "iad", "sin")
_LOADED = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
_SAFETY = _LOADED.spec.safety.model_copy(
    update={"active_idcs_min": 0, "headroom": 1.0, "anti_flap_ms": 0}
)
REGION = _LOADED.model_copy(update={"spec": _LOADED.spec.model_copy(update={"safety": _SAFETY})})
ENDS = (10, 10)
KINDS = (
    Kind.CORDON,
    Kind.UNCORDON,
    Kind.DRAIN,
    Kind.UNDRAIN,
    Kind.SWITCHOVER,
    Kind.DRAINED,
    Kind.FAILOVER,
    Kind.RECOVERING,
    Kind.FAILBACK,
    Kind.RETIRE,
)


def evidence(kind: str = "") -> Evidence:
    """Everybody empty and caught up, and accused by both others when one is to fail over: what is
    left are the transitions."""
    facts = {
        idc: IdcFacts(
            at_ms=NOW,
            origin=f"{idc}.1",
            ends=ENDS,
            held={f"{name}.1": ENDS for name in IDCS},
            applied={f"{name}.1": ENDS for name in IDCS},
            peers_held={name: ENDS for name in IDCS if name != idc},
            peers_applied={name: ENDS for name in IDCS if name != idc},
        )
        for idc in IDCS
    }
    fails = kind == Kind.FAILOVER
    votes = [Vote(a, b, 60_000, NOW) for a in IDCS for b in IDCS if a != b and fails]
    return Evidence(facts, votes, IDCS, {idc: Mark(NOW, f"{idc}.1", ENDS, 0) for idc in IDCS})


def changes(policy: Policy, overrides: tuple[str, ...] = ()) -> Iterator[Change]:
    if policy.operation is not None:
        for kind in (Kind.PAUSE, Kind.STALL, Kind.RESUME, Kind.ABORT, Kind.APPROVE):
            yield Change(kind, "", "", "operator", operation=policy.operation.id)
    for kind in KINDS:
        target = "sin" if kind == Kind.SWITCHOVER else ""
        yield Change(kind, "fra", "", "operator", target, overrides=overrides)
    for ramp in (10, 50, 100):
        yield Change(Kind.RAMP, "fra", "", "operator", ramp=ramp, overrides=overrides)
    # What interrupts it, and what makes room for that once more.
    yield Change(Kind.FAILOVER, "iad", "", "operator")
    yield Change(Kind.FAILBACK, "iad", "", "operator")
    yield Change(Kind.RAMP, "iad", "", "operator", ramp=100)


def plain(policy: Policy) -> Policy:
    """Two ways to one state are one state."""
    running = policy.operation
    named = replace(running, id=running.kind, request_id="") if running else None
    rows = {name: replace(row, since_ms=0, moved_ms=0) for name, row in policy.idcs.items()}
    return replace(policy, epoch=1, idcs=rows, operation=named, history=(), requests=())


def successors(policy: Policy, overrides: tuple[str, ...] = ()) -> Iterator[Policy]:
    for change in changes(policy, overrides):
        decision = evaluate(policy, change, evidence(change.kind), REGION, NOW)
        if decision.policy is not None:
            yield plain(decision.policy)


def returns(policy: Policy) -> Iterator[Policy]:
    """By what gives clients back or ends a move: no detour by a new cordon or drain, and none by
    an abort, so that whoever is paused can go on too."""
    takes = {Kind.CORDON, Kind.DRAIN, Kind.SWITCHOVER, Kind.FAILOVER, Kind.RETIRE, Kind.ABORT}
    for change in changes(policy):
        decision = evaluate(policy, change, evidence(change.kind), REGION, NOW)
        if decision.policy is not None and change.kind not in takes:
            yield plain(decision.policy)


def key(policy: Policy) -> bytes:
    return policy.to_json()


def is_back(policy: Policy) -> bool:
    return policy.idcs["fra"] == IdcPolicy() and policy.operation is None


@pytest.mark.parametrize("approval", [[], ["drain", "switchover", "failback"]])
def test_from_every_reachable_state_a_legal_path_leads_back_to_all_clients(
    monkeypatch: pytest.MonkeyPatch, approval: list[str]
) -> None:
    safety = _SAFETY.model_copy(update={"approval": approval})
    spec = REGION.spec.model_copy(update={"safety": safety})
    monkeypatch.setitem(globals(), "REGION", REGION.model_copy(update={"spec": spec}))
    start = plain(initial(REGION, NOW))
    known = {key(start): start}
    todo = [start]
    while todo:  # overrides too: they can leave an operation of another IDC, or half of one
        policy = todo.pop()
        for found in (*successors(policy), *successors(policy, ("one-move-at-a-time",))):
            if key(found) not in known:
                known[key(found)] = found
                todo.append(found)
    assert len(known) > 50
    leads_to = {each: {key(found) for found in returns(known[each])} for each in known}
    good = {each for each, policy in known.items() if is_back(policy)}
    while more := {each for each, nexts in leads_to.items() if each not in good and nexts & good}:
        good |= more
    stuck = [known[each] for each in known if each not in good]
    assert not stuck, stuck[0]


def after(policy: Policy, kind: str, idc: str = "fra", ramp: int = 100) -> Policy:
    request_id = f"{kind}-{idc}-{ramp}-{policy.epoch}"
    change = Change(kind, idc, request_id, "operator", ramp=ramp)
    decision = evaluate(policy, change, evidence(change.kind), REGION, NOW)
    assert decision.policy is not None, decision.sentence
    return decision.policy


@pytest.mark.parametrize("ramp", [10, 50])
def test_a_return_that_a_failover_interrupted_goes_on_from_where_it_was(ramp: int) -> None:
    """It stood at `active`, 10 %, for ever: no change was legal that raised it."""
    policy = after(initial(REGION, NOW), Kind.FAILOVER)
    policy = after(after(policy, Kind.FAILBACK), Kind.RAMP, ramp=ramp)
    policy = after(policy, Kind.FAILOVER, "iad")
    assert policy.operation is None
    policy = after(policy, Kind.FAILBACK)
    assert policy.idcs["fra"].state is IdcState.ACTIVE
    assert policy.idcs["fra"].ramp == ramp  # those who are there stay
    step = next_change(policy, NOW + 60_000, "controller fra")
    assert step is not None
    assert step.ramp > ramp


def test_a_whole_idc_has_nothing_to_return() -> None:
    change = Change(Kind.FAILBACK, "fra", "r", "operator")
    decision = evaluate(initial(REGION, NOW), change, evidence(change.kind), REGION, NOW)
    assert [blocker.rule for blocker in decision.blockers] == ["transition"]
    assert "100 %" in decision.sentence


@pytest.mark.parametrize("kind", [Kind.DRAIN, Kind.UNDRAIN])
def test_a_drain_that_a_failover_interrupted_can_be_ended_either_way(kind: str) -> None:
    policy = after(after(initial(REGION, NOW), Kind.DRAIN), Kind.FAILOVER, "iad")
    assert policy.state("fra") is IdcState.DRAINING
    assert policy.operation is None
    policy = after(policy, kind)
    if kind == Kind.DRAIN:
        assert policy.operation is not None
        policy = after(policy, Kind.DRAINED)
        assert policy.state("fra") is IdcState.DRAINED
    else:
        assert policy.idcs["fra"].state is IdcState.ACTIVE


@pytest.mark.parametrize("there_and_back", [("cordon", "uncordon"), ("drain", "undrain")])
def test_a_cordon_or_drain_taken_back_is_no_short_cut_to_all_clients(
    there_and_back: tuple[str, str],
) -> None:
    rows = {**initial(REGION, NOW).idcs, "fra": IdcPolicy(ramp=10)}
    policy = replace(initial(REGION, NOW), idcs=rows)
    for kind in there_and_back:
        policy = after(policy, kind)
    assert (policy.idcs["fra"].state, policy.idcs["fra"].ramp) == (IdcState.ACTIVE, 10)


def test_only_a_failover_ends_the_operation_of_another_idc() -> None:
    running = OperationRef("drain-iad-2", Kind.DRAIN, "iad", "", "operator", "r", NOW)
    rows = {
        **initial(REGION, NOW).idcs,
        "fra": IdcPolicy(IdcState.DRAINING),
        "iad": IdcPolicy(IdcState.DRAINING),
    }
    policy = replace(initial(REGION, NOW), idcs=rows, operation=running)
    over = Change(Kind.UNDRAIN, "fra", "r2", "operator", overrides=("one-move-at-a-time",))
    decision = evaluate(policy, over, evidence(), REGION, NOW)
    assert decision.policy is not None
    assert decision.policy.operation == running
    assert after(policy, Kind.FAILOVER, "sin").operation is None
