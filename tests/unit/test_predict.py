"""What a move will do, before it is done: who goes where, what the others carry, how long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore.region.load import load_region
from services.control.evaluate import evaluate
from services.control.evidence import Evidence, IdcFacts, Mark, Vote
from services.control.predict import Forecast, apart, busiest, forecast, time_of
from services.control.rules import Change, Kind
from services.policy.document import IdcPolicy, IdcState, Policy, initial
from services.policy.spread import spread

NOW = 1_700_000_000_000
IDCS = ("fra", "iad", "sin")
REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")


def evidence(**sessions: dict[str, int]) -> Evidence:
    facts = {
        idc: IdcFacts(
            NOW,
            f"{idc}.1",
            sessions=sum(sessions.get(idc, {}).values()),
            shards=sessions.get(idc, {}),
            messages_per_s=0.5 * sum(sessions.get(idc, {}).values()),
            ends=(1,),
        )
        for idc in IDCS
    }
    votes = [Vote(voter, "fra", 9_000, NOW) for voter in ("iad", "sin")]
    marks = {idc: Mark(NOW, f"{idc}.1", (1,), 0) for idc in IDCS}
    return Evidence(facts, votes, IDCS, marks)


def predicted(before: Policy, kind: str, on: Evidence, **fields: Any) -> Forecast:
    change = Change(kind, "fra", "r", "operator", **fields)
    if kind == Kind.FAILBACK:
        on = replace(on, votes=())
    decision = evaluate(before, change, on, REGION, NOW)
    assert decision.policy is not None, decision.sentence
    return forecast(before, decision.policy, REGION, on, "fra")


def rounded(moves: Any) -> dict[tuple[str, str], int]:
    return {pair: round(count) for pair, count in moves.items()}


HOME = {"fra": {"europe": 300}, "iad": {"americas": 200}, "sin": {"asia": 100}}


def test_a_drain_sends_each_shard_where_it_belongs_next() -> None:
    on = evidence(**{**HOME, "fra": {"europe": 300, "asia": 40}})
    found = predicted(initial(REGION, 0), Kind.DRAIN, on)
    assert rounded(found.moves) == {("fra", "iad"): 300, ("fra", "sin"): 40}
    assert found.sessions == 340
    assert found.loads["fra"].sessions == 0
    assert found.loads["iad"].sessions == 500
    assert found.loads["sin"].messages_per_s == pytest.approx(70)
    assert busiest(found.loads.items(), REGION)["iad"] == pytest.approx(250 / 2_000)
    assert found.curve[0] == (0, 0)
    assert found.curve[-1][1] == 340
    assert found.seconds == pytest.approx(340 / 50 + 2.0)


def test_a_switchover_sends_all_to_its_target_at_the_rate_asked_for() -> None:
    found = predicted(initial(REGION, 0), Kind.SWITCHOVER, evidence(**HOME), target="sin", rate=100)
    assert rounded(found.moves) == {("fra", "sin"): 300}
    assert found.seconds == pytest.approx(300 / 100 + 2.0)


def test_a_return_takes_those_back_whose_home_it_is_in_steps() -> None:
    away = {"iad": {"americas": 200, "europe": 250}, "sin": {"asia": 100, "europe": 50}}
    start = initial(REGION, 0)
    drained = replace(start, idcs={**start.idcs, "fra": IdcPolicy(IdcState.DRAINED)})
    found = predicted(drained, Kind.FAILBACK, evidence(**away))
    assert rounded(found.moves) == {("iad", "fra"): 250, ("sin", "fra"): 50}
    assert found.loads["fra"].sessions == 300
    assert [round(moved) for _, moved in found.curve] == [0, 30, 125 + 25, 300]
    assert [at for at, _ in found.curve] == sorted(at for at, _ in found.curve)
    slow = predicted(drained, Kind.FAILBACK, evidence(**away), rate=10)
    assert slow.seconds > 250 / 5
    assert slow.curve[-1][1] == 300


def test_nobody_to_move_takes_no_time_to_move() -> None:
    found = predicted(initial(REGION, 0), Kind.DRAIN, evidence())
    assert (found.sessions, found.moves) == (0, {})
    assert found.seconds <= 1.0


def test_who_is_lost_finds_its_way_alone_and_is_counted_at_the_survivors() -> None:
    found = predicted(initial(REGION, 0), Kind.FAILOVER, evidence(**HOME))
    assert rounded(found.moves) == {("fra", "iad"): 300}
    assert found.loads["iad"].sessions == 500


def test_the_sample_follows_weights_and_a_ramp() -> None:
    """Within what 300 made-up users can tell: 8 percentage points."""
    before = initial(REGION, 0)
    shared = replace(before, weights={"europe": {"iad": 1.0, "sin": 3.0}})
    found = spread(shared, shared, REGION, "fra", {"europe": 1_000})
    assert found["sin"] == pytest.approx(750, abs=80)
    assert sum(found.values()) == pytest.approx(1_000)
    ramp = replace(before, idcs={**before.idcs, "fra": IdcPolicy(ramp=30)})
    found = spread(before, ramp, REGION, "fra", {"europe": 1_000})
    assert found["fra"] == pytest.approx(300, abs=80)


def test_who_belongs_nowhere_stays() -> None:
    none = {idc: IdcPolicy(IdcState.DRAINED) for idc in IDCS}
    nowhere = replace(initial(REGION, 0), idcs=none)
    assert spread(initial(REGION, 0), nowhere, REGION, "fra", {"europe": 7}) == {"fra": 7}


def test_when_a_share_has_moved_is_read_between_the_points() -> None:
    curve = [(0.0, 0.0), (1.0, 0.0), (5.0, 80.0), (6.0, 80.0)]
    assert [time_of(curve, share) for share in (0.25, 0.5, 1.0)] == [2.0, 3.0, 5.0]
    assert time_of([(0.0, 0.0), (1.0, 0.0)], 0.5) is None
    assert time_of([], 0.5) is None


def test_curves_are_as_far_apart_as_at_the_worst_share() -> None:
    measured = [(0.0, 0.0), (4.0, 40.0)]
    assert apart(measured, measured) == 0
    assert apart([(0.0, 0.0), (5.0, 100.0)], measured) == pytest.approx(0.25)
    late = [(0.0, 0.0), (1.0, 0.0), (4.0, 40.0)]  # right in the end, wrong on the way
    assert apart(late, measured) == pytest.approx(0.75)
    assert apart([(0.0, 0.0)], measured) is None
