"""What is said of a part of a region from its three objects."""

from __future__ import annotations

from typing import Any

from imctl.reconcile.objects import REGION_FILE
from imctl.target.found import found_of

OWN: dict[str, Any] = {"status": {"conditions": [{"message": "fra-idc-0 does not serve yet"}]}}


def pod(mark: str, restarts: int = 0, **metadata: str) -> dict[str, Any]:
    notes = {"annotations": {REGION_FILE: mark}}
    state = {"waiting": {"reason": "CrashLoopBackOff"}} if restarts else {"running": {}}
    containers = {"containerStatuses": [{"restartCount": restarts, "state": state}]}
    return {"metadata": notes | metadata, "status": containers}


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
