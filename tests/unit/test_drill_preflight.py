"""The preflight names everything that would stop a drill, at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imcore.errors import Unavailable
from imcore.region.load import load_region
from imcore.region.model import FreezeWindow
from imcore.roles import Role
from imctl.drill import model
from imctl.drill.preflight import Seen, blockers
from imctl.target.base import Unit

REGIONS = Path(__file__).parents[2] / "regions"
REGION = load_region(REGIONS / "three-idc.yaml")
DRILL = model.load_drill(REGIONS / "drills" / "idc-loss.yaml")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def status(**changed: Any) -> dict[str, Any]:
    rows = {idc: {"state": "active", "ramp": 100} for idc in ("fra", "iad", "sin")}
    policy = {"epoch": 4, "stale": False, "operation": "", "idcs": rows}
    found = {"serving": True, "alarms": [], "lag": {}, "clock": {"skewed": False}}
    return {**found, "policy": policy, **changed}


def seen(**of_fra: Any) -> Seen:
    documents: dict[str, Any] = {"fra": status(**of_fra), "iad": status(), "sin": status()}
    links = [{"from": "fra", "to": "iad", "mode": "pass", "as_configured": True}]
    documents["linkproxy"] = {"links": links}
    return Seen(True, [Unit(name, "running", 1) for name in documents], documents)


def rules(found: Seen, victim: str = "fra") -> list[str]:
    return [one.rule for one in blockers(REGION, DRILL, {"victim": victim}, found, NOW)]


def test_nothing_stands_against_a_whole_deployment() -> None:
    assert rules(seen()) == []


@pytest.mark.parametrize(
    ("found", "rule"),
    [
        (replace(seen(), faults=False), "faults-off"),
        (replace(seen(), drill_runs=True), "one-drill"),
        (replace(seen(), role=Role.OPERATOR), "role"),
        (replace(seen(), left=["fra is killed, and it could not be undone"]), "faults-left"),
        (replace(seen(), late=["fra"]), "gateways-serve"),
        (replace(seen(), units=[Unit("fra", "paused", 1)]), "units-run"),
        (replace(seen(), documents={"fra": Unavailable("fra does not answer")}), "units-answer"),
        (seen(serving=False), "serving"),
        (seen(alarms=["the disk is full"]), "no-alarms"),
        (seen(lag={"iad.1": {"ms": 9_000}}), "replication-lag"),
        (seen(clock={"skewed": True}), "clocks"),
        (seen(policy={"epoch": 9, "idcs": {}, "stale": True}), "majority"),
        (seen(policy={"epoch": 9, "idcs": {}, "operation": "op-1"}), "one-move-at-a-time"),
        (
            seen(policy={"epoch": 9, "idcs": {"iad": {"state": "active", "ramp": 50}}}),
            "all-active",
        ),
    ],
)
def test_each_blocker_has_a_rule(found: Seen, rule: str) -> None:
    assert rules(found) == [rule]


@pytest.mark.parametrize(
    ("state", "way"),
    [
        ("drained", "fra is drained; `imctl failback fra` returns its clients"),
        ("cordoned", "fra is cordoned; `imctl uncordon fra` returns its clients"),
    ],
)
def test_an_idc_that_is_out_is_told_with_the_way_back(state: str, way: str) -> None:
    found = seen(policy={"epoch": 9, "idcs": {"fra": {"state": state, "ramp": 100}}})
    (one,) = blockers(REGION, DRILL, {"victim": "fra"}, found, NOW)
    assert one.sentence == way


def test_a_link_under_a_fault_is_one() -> None:
    found = seen()
    cut = {"from": "fra", "to": "iad", "mode": "drop", "as_configured": True}
    documents = {**found.documents, "linkproxy": {"links": [cut]}}
    assert rules(replace(found, documents=documents)) == ["links-whole"]


def test_all_are_named_at_once() -> None:
    found = replace(seen(alarms=["a", "b"]), faults=False)
    assert sorted(set(rules(found, "xyz"))) == ["faults-off", "no-alarms", "unknown-idc"]


def test_a_frozen_region_is_left_alone() -> None:
    window = FreezeWindow(start="2025-12-31T00:00:00Z", end="2026-01-02T00:00:00Z")
    safety = REGION.spec.safety.model_copy(update={"freeze": [window]})
    region = REGION.model_copy(update={"spec": REGION.spec.model_copy(update={"safety": safety})})
    found = blockers(region, DRILL, {"victim": "fra"}, seen(), NOW)
    assert [one.rule for one in found] == ["freeze-window"]


def test_an_idc_at_which_no_client_is_at_home_is_one() -> None:
    shards = [REGION.spec.geo.shards[0].model_copy(update={"weights": {"fra": 1, "iad": 1}})]
    geo = REGION.spec.geo.model_copy(update={"shards": shards})
    region = REGION.model_copy(update={"spec": REGION.spec.model_copy(update={"geo": geo})})
    found = blockers(region, DRILL, {"victim": "fra"}, seen(), NOW)
    assert "homes" in {each.rule for each in found}
