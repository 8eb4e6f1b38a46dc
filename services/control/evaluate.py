"""THE evaluator: every change of traffic (operator, automation, drill) is judged here only.

A pure function of (policy, change, evidence, rules, time). It is called again, never just retried,
when another change was committed meanwhile. It names all blockers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from imcore.region.model import Region
from services.control import rules, steering
from services.control.evidence import Evidence
from services.control.rules import Blocker, Case, Change, Kind, Rule
from services.policy.document import (
    HISTORY_MAX,
    REQUESTS_MAX,
    IdcPolicy,
    IdcState,
    OperationRef,
    OperationState,
    Outcome,
    Policy,
)

_S = IdcState
_FROM: dict[str, frozenset[IdcState]] = {
    Kind.CORDON: frozenset({_S.ACTIVE}),
    Kind.UNCORDON: frozenset({_S.CORDONED}),
    # `draining` without an operation: the failover of another IDC ended it half-way.
    Kind.DRAIN: frozenset({_S.ACTIVE, _S.CORDONED, _S.DRAINING}),
    Kind.SWITCHOVER: frozenset({_S.ACTIVE, _S.CORDONED, _S.DRAINING}),
    Kind.UNDRAIN: frozenset({_S.DRAINING}),
    Kind.DRAINED: frozenset({_S.DRAINING}),
    Kind.FAILOVER: frozenset(_S) - {_S.FAILED, _S.RETIRED},
    Kind.RECOVERING: frozenset({_S.FAILED}),
    # `active` below 100 %: likewise a return that was interrupted; at 100 % there is none to do.
    Kind.FAILBACK: frozenset({_S.FAILED, _S.DRAINED, _S.RECOVERING, _S.ACTIVE, _S.RETIRED}),
    Kind.RAMP: frozenset({_S.RECOVERING, _S.ACTIVE}),
    Kind.RETIRE: frozenset({_S.FAILED, _S.DRAINED}),
}
_TO: dict[str, IdcState] = {
    Kind.CORDON: _S.CORDONED,
    Kind.UNCORDON: _S.ACTIVE,
    Kind.DRAIN: _S.DRAINING,
    Kind.SWITCHOVER: _S.DRAINING,
    Kind.UNDRAIN: _S.ACTIVE,
    Kind.DRAINED: _S.DRAINED,
    Kind.FAILOVER: _S.FAILED,
    Kind.RECOVERING: _S.RECOVERING,
    Kind.FAILBACK: _S.RECOVERING,
    Kind.RAMP: _S.ACTIVE,
    Kind.RETIRE: _S.RETIRED,
}
_PLANNED: tuple[Rule, ...] = (
    rules.active_idcs_min,
    rules.serving,
    rules.headroom,
    rules.replication_lag,
    rules.one_move_at_a_time,
    rules.freeze_window,
    rules.anti_flap,
)
# They move clients back at once, without a return's steps.
_BACK: tuple[Rule, ...] = (
    rules.replication_lag_of_heard,
    rules.no_other_move,
    rules.freeze_window,
)
_ONLY_AT_THE_START: tuple[Rule, ...] = (rules.one_move_at_a_time, rules.anti_flap)
_RULES: dict[str, tuple[Rule, ...]] = {
    Kind.CORDON: (rules.active_idcs_min, rules.one_move_at_a_time, rules.freeze_window),
    Kind.UNCORDON: _BACK,
    Kind.DRAIN: _PLANNED,
    Kind.UNDRAIN: _BACK,
    Kind.SWITCHOVER: _PLANNED,
    Kind.DRAINED: (rules.log_applied_elsewhere,),
    Kind.FAILOVER: (
        rules.active_idcs_min,
        rules.headroom,
        rules.replication_lag_of_survivors,
        rules.freeze_window,
        rules.survivors_copies_agree,
        rules.votes_majority,
        rules.hold_time,
        rules.automatic_failover,
    ),
    Kind.FAILBACK: (rules.one_move_at_a_time, rules.freeze_window, rules.not_accused),
    Kind.RAMP: (rules.caught_up, rules.replication_lag),
    Kind.RETIRE: (rules.one_move_at_a_time,),
}
# Whose fresh status a kind rests on: that of all that take clients, and the IDC's own. Taking a
# cordon or a drain back rests on the own one only: one that has just died keeps nobody out.
_OTHERS_FACTS = frozenset({Kind.DRAIN, Kind.SWITCHOVER, Kind.FAILOVER, Kind.RAMP})
_OWN_FACTS = frozenset(
    {
        Kind.UNCORDON, Kind.DRAIN, Kind.UNDRAIN, Kind.SWITCHOVER, Kind.RAMP, Kind.DRAINED,
        Kind.FAILBACK,
    }
)  # fmt: skip
_KEEPS_RAMP = frozenset({Kind.CORDON, Kind.UNCORDON, Kind.DRAIN, Kind.SWITCHOVER, Kind.UNDRAIN})
# By these a move of the IDC's clients has ended, or has come a step further.
_MOVED = frozenset({Kind.DRAINED, Kind.UNDRAIN, Kind.FAILOVER, Kind.RAMP})
_OPENS = frozenset({Kind.DRAIN, Kind.SWITCHOVER, Kind.FAILBACK})


@dataclass(frozen=True, slots=True)
class Decision:
    """``policy`` None: refused, for all of ``blockers``. ``repeated``: this very request had been
    decided before, and ``sentence`` is what was said then."""

    policy: Policy | None
    sentence: str
    blockers: tuple[Blocker, ...] = ()
    overridden: tuple[Blocker, ...] = ()
    operation: str = ""
    repeated: bool = False


def evaluate(
    policy: Policy, change: Change, evidence: Evidence, region: Region, now_ms: int
) -> Decision:
    done = policy.outcome(change.request_id)
    if done is not None:
        return Decision(policy, done.sentence, operation=done.operation, repeated=True)
    change = steering.completed(policy, change)
    case = Case(
        policy,
        change,
        evidence,
        region,
        now_ms,
    )
    blockers = _nonsense(case)
    blockers += _violations(case)
    passed = tuple(
        blocker
        for blocker in blockers
        if blocker.rule in change.overrides and blocker.rule not in rules.ALWAYS
    )
    left = tuple(blocker for blocker in blockers if blocker not in passed)
    if left:
        said = "; ".join(f"{blocker.rule}: {blocker.sentence}" for blocker in left)
        return Decision(None, f"{_wish(change)} is refused: {said}", left, passed)
    return _commit(case, passed)


def _nonsense(case: Case) -> list[Blocker]:
    change, policy = case.change, case.policy
    found = []
    if len(change.overrides) > 1:
        found.append(
            Blocker("override", str(len(change.overrides)), "1", "one override names one rule")
        )
    found += [
        Blocker("override", name, "a safety rule", rules.no_rule(name))
        for name in change.overrides
        if name not in rules.RULES
    ]
    if change.expect_epoch and change.expect_epoch != policy.epoch:
        found.append(
            Blocker(
                "expect-epoch",
                str(policy.epoch),
                str(change.expect_epoch),
                f"the policy is at epoch {policy.epoch}, not {change.expect_epoch}",
            )
        )
    if change.kind in steering.KINDS:
        misfit = steering.misfit(policy, change)
        if misfit:
            return [*found, _transition(*misfit)]
        if change.kind == Kind.APPROVE and policy.operation:
            return found + _state_nonsense(case, policy.operation.kind)
        return found
    if change.kind not in _FROM or change.idc not in case.idcs:
        found.append(_transition(f"{change.kind} {change.idc}", "a known change of a known IDC"))
        return found
    found += _state_nonsense(case, change.kind)
    if change.kind == Kind.SWITCHOVER and change.target not in case.others():
        itself = f"{change.target} itself" if change.target == change.idc else change.target
        found.append(_transition(f"the target is {itself or 'missing'}", "another IDC, active"))
    if change.kind == Kind.RAMP:
        found += _ramp_nonsense(case)
    running = policy.operation
    stands = running and running.idc == change.idc and running.state is not OperationState.RUNNING
    if change.kind in steering.STEPS and running and stands:
        found.append(_transition(f"{running.id} is {running.state}", "a running operation"))
    return found


def _state_nonsense(case: Case, kind: str) -> list[Blocker]:
    """Whether the IDC is in a state that the kind of change begins from."""
    idc, allowed = case.change.idc, _FROM[kind]
    state, ramp = case.policy.state(idc), _ramp_of(case.policy, idc)
    if state not in allowed:
        return [_transition(f"{idc} is {state}", " or ".join(sorted(allowed)))]
    if kind == Kind.FAILBACK and state is _S.ACTIVE and ramp == 100:
        return [_transition(f"{idc} is active at 100 %", "less than all its clients")]
    return []


def _ramp_nonsense(case: Case) -> list[Blocker]:
    change, running = case.change, case.policy.operation
    if running is None or running.kind != Kind.FAILBACK or running.idc != change.idc:
        return [_transition(f"no failback of {change.idc} is under way", "a failback under way")]
    if not 1 <= change.ramp <= 100:
        return [_transition(f"a ramp of {change.ramp}", "1 to 100 per cent")]
    return []


def _transition(measured: str, limit: str) -> Blocker:
    return Blocker("transition", measured, limit, f"{measured}; expected {limit}")


def _violations(case: Case) -> list[Blocker]:
    resumed = case.change.kind in (Kind.RESUME, Kind.APPROVE)
    judged: Change | None = case.change
    if case.change.kind in steering.KINDS:
        running = case.policy.operation
        judged = steering.judged_as(running, case.change) if running else None
    if judged is None or judged.kind not in _FROM or judged.idc not in case.idcs:
        return []
    case, kind = replace(case, change=judged), judged.kind
    needed = [judged.idc] if kind in _OWN_FACTS else []
    needed += case.others() if kind in _OTHERS_FACTS else []
    if kind == Kind.FAILOVER:
        # Of several that are lost together none could ever speak for the failover of another.
        lost = rules.lost(case)
        needed = [name for name in needed if name not in lost]
    found = [rules.evidence_age(case, needed)] if needed else []
    found += [
        rule(case) for rule in _RULES.get(kind, ()) if not (resumed and rule in _ONLY_AT_THE_START)
    ]
    return [blocker for blocker in found if blocker is not None]


def _commit(case: Case, overridden: Sequence[Blocker]) -> Decision:
    change, policy = case.change, case.policy
    epoch = policy.epoch + 1
    running, closes = policy.operation, _closes(case)
    operation = running
    history = policy.history
    opened = ""
    if change.kind in _OPENS or change.kind == Kind.FAILOVER:
        opened = f"{change.kind}-{change.idc}-{epoch}"
        history = (*history, opened)[-HISTORY_MAX:]
    awaits = change.kind in _OPENS and change.kind in case.safety.approval
    if change.kind in _OPENS:
        operation = OperationRef(
            opened,
            change.kind,
            change.idc,
            change.target,
            change.by,
            change.request_id,
            case.now_ms,
            OperationState.AWAITING if awaits else OperationState.RUNNING,
            rate=change.rate,
            max_lag_ms=change.max_lag_ms,
        )
    elif closes:
        operation = None
    sentence = _sentence(case, epoch, overridden) + (", waiting for approval" if awaits else "")
    named = opened or (running.id if running else "")
    outcome = Outcome(change.request_id, epoch, named, sentence)
    if change.kind in steering.KINDS:
        assert running is not None  # else it had been a misfit
        operation, changed = steering.steered(
            running, change, policy.idcs[running.idc], case.now_ms
        )
        if change.kind == Kind.APPROVE:
            changed = _changed(replace(case, change=replace(change, kind=running.kind)))
    elif awaits:
        changed = policy.idcs.get(change.idc, IdcPolicy())
    else:
        changed = _changed(case)
    new = replace(
        policy,
        epoch=epoch,
        idcs={**policy.idcs, change.idc: changed},
        operation=operation,
        history=history,
        requests=(*policy.requests, outcome)[-REQUESTS_MAX:],
    )
    return Decision(new, sentence, (), tuple(overridden), named)


def _changed(case: Case) -> IdcPolicy:
    state, ramp = _becomes(case.policy, case.change)
    known = case.policy.idcs.get(case.change.idc, IdcPolicy())
    moved_ms = case.now_ms if case.change.kind in _MOVED else known.moved_ms
    return IdcPolicy(state, ramp, _target(case.policy, case.change), case.now_ms, moved_ms)


def _ramp_of(policy: Policy, idc: str) -> int:
    known = policy.idcs.get(idc)
    return known.ramp if known else 100


def _becomes(policy: Policy, change: Change) -> tuple[IdcState, int]:
    """What an IDC may get of its clients goes up by a return's steps only: a cordon or a drain
    that is taken back gives it no more than it had. A return that goes on keeps those it has."""
    if change.kind == Kind.RAMP:
        return _S.ACTIVE, change.ramp
    known = _ramp_of(policy, change.idc)
    if change.kind == Kind.FAILBACK and policy.state(change.idc) is _S.ACTIVE:
        return _S.ACTIVE, known
    return _TO[change.kind], known if change.kind in _KEEPS_RAMP else 100


def _target(policy: Policy, change: Change) -> str:
    """Who takes the clients over, and keeps them while the IDC stays drained: no second move."""
    if change.kind == Kind.SWITCHOVER:
        return change.target
    known = policy.idcs.get(change.idc)
    return known.target if known and change.kind == Kind.DRAINED else ""


def _closes(case: Case) -> bool:
    """A failover ends whatever move was under way: its plan no longer holds. Every other change
    ends only an operation of its own IDC."""
    kind, running = case.change.kind, case.policy.operation
    if kind == Kind.FAILOVER:
        return True
    if running is None or running.idc != case.change.idc:
        return False
    return kind in (Kind.DRAINED, Kind.UNDRAIN) or (kind == Kind.RAMP and case.change.ramp == 100)


def _wish(change: Change) -> str:
    if change.kind in steering.KINDS:
        reason = f", which waits too long: {change.reason}" if change.reason else ""
        return f"{change.kind} of {change.operation} by {change.by}{reason}"
    target = f" to {change.target}" if change.target else ""
    ramp = f" to {change.ramp} %" if change.kind == Kind.RAMP else ""
    return f"{change.kind} of {change.idc}{target}{ramp} by {change.by}"


def _sentence(case: Case, epoch: int, overridden: Sequence[Blocker]) -> str:
    text = f"epoch {epoch}: {_wish(case.change)}"
    if case.change.kind == Kind.FAILOVER:
        voters = sorted(vote.voter for vote in rules.votes_of(case))
        text += f", accused by {', '.join(voters) or 'nobody'}"
    if overridden:
        text += f", overriding {', '.join(blocker.rule for blocker in overridden)}"
    return text
