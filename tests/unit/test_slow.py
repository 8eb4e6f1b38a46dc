"""Which steps of an operation run longer than usual, and what usual is."""

from __future__ import annotations

import pytest

from services.control.operations import Operation, Step, operation_from_json, step_name
from services.control.rules import Change, Kind
from services.control.slow import (
    SAMPLES_MIN,
    STEP_DEFAULT_MS,
    STEP_FLOOR_MS,
    lasted,
    p75,
    slow_steps,
    usual,
)
from services.policy.document import OperationRef, OperationState, Policy


def operation(
    *steps: tuple[int, str], state: OperationState = OperationState.DONE, number: int = 99
) -> Operation:
    """``steps``: (second, name)."""
    rows = tuple(Step(s * 1000, n, name, {}, name) for n, (s, name) in enumerate(steps, start=2))
    began = steps[0][0] * 1000
    name = f"drain-fra-{number}"
    return Operation(name, "drain", "fra", "", "operator", "r", state, began, steps=rows)


def drained(number: int, began: int, seconds: int) -> Operation:
    return operation((began, "drain"), (began + seconds, "drained"), number=number)


def running(began: int, *more: tuple[int, str]) -> Operation:
    return operation((began, "drain"), *more, state=OperationState.RUNNING)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([7], 7), ([1, 2], 2), ([1, 2, 3], 3), ([4, 3, 2, 1], 3), (range(1, 101), 75)],
)
def test_the_75th_percentile_is_by_nearest_rank(samples: list[int], expected: int) -> None:
    assert p75(samples) == expected


def test_usual_is_twice_the_p75_never_below_the_floor_and_a_default_for_few() -> None:
    assert usual([4_000, 3_000, 9_000], 60_000, 5_000).limit_ms == 18_000
    assert usual([100, 100, 100], 60_000, 5_000).limit_ms == 5_000
    assert usual([9_000] * (SAMPLES_MIN - 1), 60_000, 5_000) == (60_000, SAMPLES_MIN - 1)


def test_a_step_lasts_until_the_next_and_the_last_one_until_now_while_it_runs() -> None:
    done = lasted(drained(1, 10, 7), 60_000)
    assert [(t.step, t.name, t.ms, t.over, t.whole) for t in done] == [
        (0, "drain", 7_000, True, True)
    ]
    (now,) = lasted(running(10), 25_000)
    assert (now.ms, now.over, now.whole) == (15_000, False, False)
    back = operation((0, "failback"), (4, "ramp-10"), (6, "ramp-50"), (9, "ramp-100"))
    assert [(t.name, t.ms) for t in lasted(back, 0)] == [
        ("failback", 4_000), ("ramp-10", 2_000), ("ramp-50", 3_000),
    ]  # fmt: skip


def test_people_are_not_timed_and_what_they_cut_short_is_no_sample() -> None:
    steps = ((0, "approval"), (500, "drain"), (510, "pause"), (900, "resume"), (905, "drained"))
    found = lasted(operation(*steps), 0)
    assert [(t.step, t.name, t.ms, t.whole) for t in found] == [
        (1, "drain", 10_000, False), (3, "drain", 5_000, False),
    ]  # fmt: skip
    for state in (OperationState.PAUSED, OperationState.STALLED, OperationState.AWAITING):
        waits = operation((0, "approval"), state=state)
        assert lasted(waits, 10_000_000) == []
    overtaken = operation((0, "drain"), (3, "failover"), state=OperationState.FAILED)
    assert [t.whole for t in lasted(overtaken, 0)] == [False]


def test_what_another_idc_does_meanwhile_interrupts_nothing() -> None:
    (took,) = lasted(operation((0, "drain"), (3, "recovering"), (9, "drained")), 0)
    assert (took.ms, took.whole) == (9_000, True)


def test_a_step_is_slow_beyond_twice_the_p75_of_those_before_it() -> None:
    known = [drained(n, n * 100, seconds) for n, seconds in enumerate((4, 5, 6, 30))]
    mine = running(1_000)
    assert slow_steps(mine, known, 1_012_000) == []
    (slow,) = slow_steps(mine, [*known, mine, drained(200, 2_000, 1)], 1_012_001)
    assert slow.took.step == 0 and slow.usual == (12_000, 4)
    assert slow.sentence() == "slow: drain has run for 12.0 s, limit 12.0 s (4 earlier)"
    ended = operation((1_000, "drain"), (1_020, "drained"))
    assert "took 20.0 s" in slow_steps(ended, known, 9_999_999)[0].sentence()


def test_without_samples_the_default_holds_and_old_records_have_no_names() -> None:
    assert slow_steps(running(0), [], STEP_DEFAULT_MS) == []
    (slow,) = slow_steps(running(0), [], STEP_DEFAULT_MS + 1)
    assert "no samples" in slow.sentence()
    quick = [drained(n, n, 0) for n in range(5)]
    assert slow_steps(running(100), quick, 100_000 + STEP_FLOOR_MS) == []
    old = operation((0, ""), (900, ""))
    assert lasted(old, 0) == []
    text = b'{"at_ms":1,"epoch":2,"sentence":"x","evidence":{}}'
    record = old.to_json().replace(b'"steps":[', b'"steps":[' + text + b",")
    assert operation_from_json(record).steps[0].name == ""


def test_a_step_is_named_by_what_is_done_from_then_on() -> None:
    ref = OperationRef("switchover-fra-2", "switchover", "fra", "iad", "x", "r", 0)
    waits = OperationRef(
        "switchover-fra-2", "switchover", "fra", "iad", "x", "r", 0, OperationState.AWAITING
    )
    none, awaiting, moving = Policy(1, {}), Policy(2, {}, waits), Policy(3, {}, ref)

    def name(kind: str, before: Policy, after: Policy, ramp: int = 0) -> str:
        return step_name(Change(kind, "fra", "r", "operator", ramp=ramp), before, after)

    assert name(Kind.SWITCHOVER, none, awaiting) == "approval"
    assert name(Kind.APPROVE, awaiting, moving) == "switchover"
    assert name(Kind.SWITCHOVER, none, moving) == "switchover"
    assert name(Kind.RECOVERING, awaiting, awaiting) == "recovering"
    assert name(Kind.RAMP, moving, moving, 50) == "ramp-50"
    assert name(Kind.PAUSE, moving, moving) == "pause"
