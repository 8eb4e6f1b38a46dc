"""Where a move is asked for by an object, and in which words."""

from __future__ import annotations

from imctl.api.operation import TrafficOperationSpec
from imctl.byoperator import asker, object_of, places_of, secret_of
from imctl.drill.asked import status_of
from imctl.errors import ABORTED, DEVIATED, OK, UNKNOWN
from imctl.target.base import Place
from services.control.rules import Change, Kind

IDCS = ["fra", "dub", "iad"]


def place(name: str) -> Place:
    return Place("west" if name == "iad" else "", f"im-{name}")


def change(kind: str, target: str = "", **more: object) -> Change:
    return Change(kind, "fra", "r", "operator", target, **more)  # type: ignore[arg-type]


def test_it_is_asked_for_beside_the_idc_and_of_a_lost_one_elsewhere_first() -> None:
    def names(wish: Change) -> list[str]:
        return [each.namespace for each in places_of(wish, IDCS, place)]

    assert names(change(Kind.DRAIN)) == ["im-fra", "im-dub", "im-iad"]
    assert names(change(Kind.SWITCHOVER, "iad")) == ["im-fra", "im-iad", "im-dub"]
    assert names(change(Kind.FAILOVER)) == ["im-dub", "im-iad", "im-fra"]
    shared = places_of(change(Kind.DRAIN), IDCS, lambda name: Place("", "im"))
    assert shared == [Place("", "im")]


def test_the_object_has_the_epoch_of_the_plan_and_the_certificate_that_is_needed() -> None:
    wish = change(Kind.SWITCHOVER, "dub", rate=20, overrides=("headroom",))
    made = object_of(wish, "two-idc", place("fra"), 7, "ada@laptop", "fans")
    assert made["metadata"]["namespace"] == "im-fra"
    assert made["metadata"]["name"].startswith("switchover-fra-")
    assert made["spec"] == {
        "region": "two-idc", "move": "switchover", "idc": "fra", "target": "dub",
        "certificate": "imctl-admin", "expect_epoch": 7, "overrides": ["headroom"], "rate": 20,
        "asked_by": "ada@laptop", "reason": "fans",
    }  # fmt: skip
    said = object_of(change(Kind.DRAIN, expect_epoch=3), "two-idc", place("fra"), 7, "", "")
    assert said["spec"]["expect_epoch"] == 3
    assert secret_of(change(Kind.DRAIN)) == "imctl-operator"


def test_who_asks_can_stand_in_an_object() -> None:
    wish = {"region": "r", "move": "drain", "idc": "fra", "certificate": "c", "asked_by": asker()}
    assert "@" in TrafficOperationSpec.model_validate(wish).asked_by


def test_a_drill_run_ends_the_command_as_a_run_of_its_own_would() -> None:
    verdicts = ("pass", "deviated", "aborted", "inconclusive")
    found = [status_of({"verdict": each}) for each in verdicts]
    assert found == [OK, DEVIATED, ABORTED, UNKNOWN]
    assert status_of({"verdict": "pass", "left": ["a link"]}) == DEVIATED
