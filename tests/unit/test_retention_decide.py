"""Rule 8: nothing is cut that any IDC, or any later seal, may still call for."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from imcore.words import Origin
from services.retention.decide import Facts, Kept, Limits, Plan, at, decide

FRA, IAD, OLD = Origin("fra", 2), Origin("iad", 1), Origin("fra", 1)
ORIGINS = (FRA, IAD, OLD)
PARTITIONS = 2
OVER = Limits(log_bytes=100, snapshots=2)

rows = st.tuples(*[st.integers(0, 12)] * PARTITIONS)
ends = st.dictionaries(st.sampled_from(ORIGINS), rows)
snapshots = st.lists(st.tuples(ends, st.booleans()), max_size=4).map(
    lambda found: [Kept(str(n), vector, safe) for n, (vector, safe) in enumerate(found)]
)


@st.composite
def situations(draw) -> tuple[Facts, dict[str, Any], Limits]:
    idcs = draw(st.lists(st.sampled_from(["fra", "iad", "sin"]), min_size=1, unique=True))
    held = {idc: draw(st.none() | ends) for idc in idcs}
    before = {idc: draw(st.none() | ends) for idc in draw(st.permutations(idcs))}
    facts = Facts(
        draw(st.integers(0, 200)), draw(st.integers(0, 200)), held, draw(ends), draw(snapshots)
    )
    return facts, before, Limits(100, draw(st.integers(2, 4)))


@given(situations())
def test_nothing_is_cut_above_what_any_idc_holds_or_a_kept_safe_snapshot_has(situation) -> None:
    facts, before, limits = situation
    plan = decide(facts, before, limits)
    kept = [
        s for s in facts.snapshots if s.name not in plan.drop and (s.safe or s.name in plan.safe)
    ]
    for (origin, partition), below in plan.cut.items():
        assert facts.log_bytes > limits.log_bytes
        assert kept
        assert all(below <= at(s.vector, origin, partition) for s in kept)
        for held in (*facts.held.values(), *(before[idc] for idc in facts.held)):
            assert held is not None and below <= at(held, origin, partition)


AN_EMPTY_SNAPSHOT = (
    Facts(0, 0, {"fra": None}, {}, [Kept("0", {FRA: (0, 0)})]),
    {"fra": None},
    Limits(100, 2),
)


@given(situations())
@example(AN_EMPTY_SNAPSHOT)
def test_a_snapshot_becomes_safe_only_below_every_idc_and_every_seal(situation) -> None:
    facts, before, limits = situation
    plan = decide(facts, before, limits)
    by_name = {s.name: s for s in facts.snapshots}
    for name in plan.safe:
        for origin, row in by_name[name].vector.items():
            for partition, lsn in enumerate(row):
                assert origin not in facts.seals or lsn <= at(facts.seals, origin, partition)
                for held in (*facts.held.values(), *(before[idc] for idc in facts.held)):
                    # Who was not heard of holds nothing: enough for an empty snapshot.
                    assert lsn <= at(held or {}, origin, partition)


@given(situations())
def test_the_newest_safe_snapshot_stays_and_the_shelf_is_bounded(situation) -> None:
    facts, before, limits = situation
    plan = decide(facts, before, limits)
    sealed_off = {
        s.name
        for s in facts.snapshots
        if any(
            origin in facts.seals and lsn > at(facts.seals, origin, partition)
            for origin, row in s.vector.items()
            for partition, lsn in enumerate(row)
        )
    }
    safe = [
        s.name
        for s in facts.snapshots
        if s.name not in sealed_off and (s.safe or s.name in plan.safe)
    ]
    assert sealed_off <= set(plan.drop)
    assert not safe or safe[-1] not in plan.drop
    left = len(facts.snapshots) - len(plan.drop) + plan.take
    assert left <= limits.snapshots


def held(fra: int, iad: int) -> dict[Origin, tuple[int, int]]:
    return {FRA: (fra, fra), IAD: (iad, iad)}


def test_a_snapshot_is_taken_once_the_logs_are_over_their_limit() -> None:
    everybody = {"fra": held(9, 9), "iad": held(9, 9)}
    assert decide(Facts(100, 100, everybody, {}, []), everybody, OVER) == Plan()
    assert decide(Facts(101, 101, everybody, {}, []), everybody, OVER) == Plan(take=True)


def test_a_failed_idc_holds_back_and_a_retired_one_does_not() -> None:
    snapshot = Kept("one", held(9, 9))
    all_three = {"fra": held(9, 9), "iad": held(12, 12), "sin": held(3, 12)}
    plan = decide(Facts(101, 0, all_three, {}, [snapshot]), all_three, OVER)
    assert plan == Plan(waiting_for=("sin",))
    without = {idc: ends for idc, ends in all_three.items() if idc != "sin"}
    plan = decide(Facts(101, 0, without, {}, [snapshot]), without, OVER)
    assert plan.safe == ("one",)
    assert plan.cut == {(FRA, 0): 9, (FRA, 1): 9, (IAD, 0): 9, (IAD, 1): 9}


def test_an_idc_that_was_not_heard_of_since_the_start_counts_as_holding_nothing() -> None:
    known = {"fra": held(9, 9), "iad": None}
    plan = decide(Facts(101, 0, known, {}, [Kept("one", held(5, 5))]), known, OVER)
    assert plan == Plan(waiting_for=("iad",))


def test_a_safe_snapshot_stays_safe_when_an_idc_that_returns_holds_less() -> None:
    everybody = {"fra": held(9, 9), "iad": held(2, 9)}
    snapshot = Kept("one", held(5, 5), safe=True)
    plan = decide(Facts(101, 0, everybody, {}, [snapshot]), everybody, OVER)
    assert plan.drop == ()
    assert plan.cut == {(FRA, 0): 2, (FRA, 1): 2, (IAD, 0): 5, (IAD, 1): 5}


def test_a_newer_safe_snapshot_replaces_the_older() -> None:
    everybody = {"fra": held(9, 9), "iad": held(9, 9)}
    shelf = [Kept("one", held(5, 5), safe=True), Kept("two", held(8, 8))]
    plan = decide(Facts(101, 0, everybody, {}, shelf), everybody, OVER)
    assert (plan.safe, plan.drop, plan.cut[FRA, 0]) == (("two",), ("one",), 8)


def test_a_snapshot_above_a_seal_goes() -> None:
    everybody = {"fra": held(9, 9), "iad": held(9, 9)}
    facts = Facts(101, 0, everybody, {FRA: (4, 9)}, [Kept("one", held(5, 5))])
    assert decide(facts, everybody, OVER) == Plan(drop=("one",), take=True)
