"""The plan of a move on the screen, and the question before it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imcore.region.load import load_region
from imctl.moveplan import MOVES, as_document, plan_lines, question, refusal_lines
from services.control import steering
from services.control.evaluate import _FROM
from services.control.predict import Forecast
from services.control.rules import Blocker, Change, Kind
from services.policy.spread import Load

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
FORECAST = Forecast(
    {("fra", "iad"): 200.0, ("fra", "sin"): 100.0},
    {"fra": Load(0, 0), "iad": Load(500, 700), "sin": Load(1_000, 100)},
    50.0,
    ((0.0, 0.0), (0.5, 0.0), (7.5, 300.0), (8.0, 300.0)),
)


def change(kind: str, **fields: Any) -> Change:
    return Change(kind, "fra", "r", "operator", **fields)


def test_the_plan_says_who_goes_where_what_each_then_carries_and_how_long_it_takes() -> None:
    assert plan_lines(FORECAST, REGION) == [
        "  200 clients from fra to iad",
        "  100 clients from fra to sin",
        "  iad will then carry 500 sessions, 700 messages/s: 35 % of capacity, limit 80 %",
        "  sin will then carry 1000 sessions, 100 messages/s: 10 % of capacity, limit 80 %",
        "  at 50 sessions per second this takes about 8 s",
    ]


def test_nobody_to_move_and_nobody_who_hands_over_are_said_so() -> None:
    none = Forecast({}, FORECAST.loads, 0.0, ((0.0, 0.0), (1.0, 0.0)))
    assert plan_lines(none, REGION) == ["  no clients to move"]
    lost = Forecast(FORECAST.moves, FORECAST.loads, 0.0, ((0.5, 300.0),))
    assert (
        plan_lines(lost, REGION)[-1] == "  clients reconnect on their own when they notice the loss"
    )


def test_the_document_is_plain_and_keeps_the_curve() -> None:
    document = as_document(FORECAST, REGION)
    assert json.loads(json.dumps(document)) == document
    assert document["moves"][0] == {"from": "fra", "to": "iad", "sessions": 200}
    assert document["loads"]["iad"]["of_capacity"] == 0.35
    assert (document["seconds"], document["curve"][-2]) == (8.0, [7.5, 300.0])


def test_the_question_names_what_will_happen_and_what_it_overrides() -> None:
    assert question(change(Kind.DRAIN), FORECAST) == "Move all 300 clients of fra away?"
    moved = question(change(Kind.SWITCHOVER, target="iad", overrides=("headroom",)), FORECAST)
    assert moved == "Move all 300 clients of fra to iad, overriding headroom?"
    paused = question(change(Kind.PAUSE, operation="drain-fra-7"), None)
    assert paused == "Pause drain-fra-7?"


@pytest.mark.parametrize("kind", sorted({*_FROM, *steering.KINDS}))
def test_everything_that_is_asked_for_has_its_question(kind: str) -> None:
    """Steps and stalls are the controllers' own: nobody is asked about those."""
    if kind in (*steering.STEPS, Kind.STALL, Kind.RECOVERING):
        return
    asked = question(change(kind, target="iad", operation="x"), FORECAST)
    assert asked.endswith("?")
    assert ("300" in asked) == (kind in MOVES)


def test_a_refusal_names_rule_measurement_and_limit_a_line_each() -> None:
    blockers = (
        Blocker("anti-flap", "6.7 s ago", "60 s", "x"),
        Blocker("replication-lag", "9000 ms", "5000 ms", "y"),
    )
    assert refusal_lines(blockers) == [
        "  anti-flap        6.7 s ago; limit: 60 s",
        "  replication-lag  9000 ms; limit: 5000 ms",
    ]
    assert refusal_lines(()) == []
