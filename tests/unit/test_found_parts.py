"""What is said of a part of a region from its three objects."""

from __future__ import annotations

from typing import Any

import pytest

from imctl.reconcile.objects import REGION_FILE, TEMPLATE
from imctl.target.base import Rolling
from imctl.target.found import MANAGER, found_of, rolling_of

OWN: dict[str, Any] = {"status": {"conditions": [{"message": "fra-idc-0 does not serve yet"}]}}


def pod(mark: str, restarts: int = 0, **metadata: str) -> dict[str, Any]:
    notes = {"annotations": {REGION_FILE: mark}}
    state = {"waiting": {"reason": "CrashLoopBackOff"}} if restarts else {"running": {}}
    containers = {"containerStatuses": [{"restartCount": restarts, "state": state}]}
    spec = {"terminationGracePeriodSeconds": 90}
    return {"metadata": notes | metadata, "spec": spec, "status": containers}


def made(mark: str) -> dict[str, Any]:
    return {"spec": {"template": {"metadata": {"annotations": {REGION_FILE: mark}}}}}


def test_nothing_of_it() -> None:
    found = found_of("fra", None, None, None)
    assert (found.there, found.lives, found.mark, found.trouble) == (False, False, "", "")


def test_no_operator_has_seen_it() -> None:
    found = found_of("fra", {"spec": {}}, None, None)
    assert found.there and not found.lives
    assert found.trouble.startswith("no operator says anything of it")


def test_it_is_blocked() -> None:
    own = {"status": {"blocked_by": ["Secret a is not there", "Secret b lacks tls.key"]}}
    found = found_of("fra", own, None, None)
    assert found.trouble == "Secret a is not there; Secret b lacks tls.key"


def test_its_pod_has_the_file_before_the_one_that_is_wanted() -> None:
    found = found_of("fra", OWN, pod("a", 3), made("b"))
    assert (found.lives, found.mark, found.next_mark, found.ends) == (True, "a", "b", 3)
    assert found.trouble == "fra-idc-0 does not serve yet"


def test_how_often_one_that_runs_has_ended_does_not_count() -> None:
    runs = pod("a")
    runs["status"]["containerStatuses"][0]["restartCount"] = 7
    assert found_of("fra", OWN, runs, made("a")).ends == 0


def test_a_pod_that_is_told_to_end_does_not_live() -> None:
    found = found_of("fra", OWN, pod("a", deletionTimestamp="2026-01-01T00:00:00Z"), made("b"))
    assert found.there and not found.lives


def test_without_a_pod_the_next_ones_file_is_its_own() -> None:
    assert found_of("fra", OWN, None, made("b")).mark == "b"


def test_a_pod_with_other_settings_than_its_next_one_waits_to_be_replaced() -> None:
    old, new = pod("a"), made("a")
    old["metadata"]["annotations"][TEMPLATE] = "1"
    new["spec"]["template"]["metadata"]["annotations"][TEMPLATE] = "2"
    found = found_of("fra", OWN, old, new)
    assert found.outdated and not found.is_new
    other_file = found_of("fra", OWN, old, made("b"))
    assert not other_file.outdated, "that is the region file's difference"
    assert found_of("fra", OWN, None, new).is_new, "there is none to replace"


@pytest.mark.parametrize(
    ("status", "holds"),
    [
        ({"observed_generation": 2, "phase": "Serving"}, True),
        ({"observed_generation": 1, "phase": "Serving"}, False),
        ({"observed_generation": 2, "phase": "Blocked"}, False),
        ({"observed_generation": 2, "phase": "Paused"}, False),
        ({}, False),
    ],
)
def test_when_an_operator_has_taken_it_up(status: dict[str, Any], holds: bool) -> None:
    own = {"metadata": {"generation": 2}, "status": status}
    assert found_of("fra", own, pod("a"), made("a")).taken_up("a") is holds
    assert not found_of("fra", own, pod("a"), made("a")).taken_up("b")


GATEWAYS: dict[str, Any] = {
    "metadata": {"generation": 2, "managedFields": [{"manager": MANAGER}]},
    "spec": {"idc": "fra", "rollout": {"min_ready_s": 30}},
    "status": {
        "observed_generation": 2, "phase": "Serving", "updated": 1,
        "conditions": [
            {"type": "Ready", "status": "True", "message": "2 of 2 serve"},
            {"type": "Rolled", "status": "False", "message": "gateway 1 of 2 waits"},
        ],
    },
}  # fmt: skip


def gateways(**changes: Any) -> dict[str, Any]:
    return {name: value | changes.get(name, {}) for name, value in GATEWAYS.items()}


@pytest.mark.parametrize(
    ("changes", "mark", "rolling"),
    [
        ({}, "a", None),
        # As when some are not ready; and of what knows no `rollout`.
        ({"status": {"phase": "Unready"}}, "a", Rolling("gateway 1 of 2 waits", "1", 30)),
        (
            {"status": {"phase": "Rolling", "rollout": {"step": 1, "of": 2, "waiting_for": "x"}}},
            "a", Rolling("step 1 of 2 of new settings: x", "1", 30),
        ),
        (
            {"status": {"phase": "Rolling", "rollout": {"step": 2, "of": 2, "waiting_for": ""}}},
            "a", Rolling("step 2 of 2 of new settings", "1", 30),
        ),
        (
            {"metadata": {"generation": 3}}, "a",
            Rolling("the operator has not seen what is wanted yet", "", 30),
        ),
        ({"status": {"blocked_by": ["x", "y"]}}, "a", Rolling("x; y", "1", 30)),
        ({}, "b", Rolling("they get the region file that is wanted", "1", 30)),
        ({"spec": {"paused": True}, "status": {"phase": "Paused"}}, "a", None),
        (
            {"metadata": {"managedFields": [{"manager": "helm"}]}, "status": {"phase": "Rolling"}},
            "a", None,
        ),
    ],
)  # fmt: skip
def test_gateways_on_their_way(changes: dict[str, Any], mark: str, rolling: Rolling | None) -> None:
    assert rolling_of(gateways(**changes), made("a"), mark) == rolling
    assert rolling_of(None, None, mark) is None
