"""What the operator reads out of Kubernetes' documents."""

from __future__ import annotations

from typing import Any

import pytest

from imctl.reconcile.objects import DOWN_UNTIL, REGION_FILE, TEMPLATE
from imctl.reconcile.observed import Owner, Pod
from imctl.reconcile.seen import down_until, owner_of, pod_of


def document(**status: Any) -> Any:
    notes = {TEMPLATE: "t", REGION_FILE: "r"}
    return {"metadata": {"name": "fra-idc-0", "annotations": notes}, "status": status}


def waits(reason: str, **more: Any) -> Any:
    container = {"name": "idc", "state": {"waiting": {"reason": reason}}, **more}
    return document(containerStatuses=[container])


def test_a_pod_that_serves() -> None:
    ready = document(conditions=[{"type": "Ready", "status": "True"}])
    assert pod_of(ready, {"phase": "Starting"}) == Pod("fra-idc-0", True, False, "t", "r")
    assert pod_of(None, {}) is None


def test_what_a_pod_listens_on() -> None:
    ours = {"name": "idc", "ports": [
        {"name": "peer", "containerPort": 7102},
        {"name": "gateway-1-udp", "containerPort": 7100, "protocol": "UDP"},
    ]}  # fmt: skip
    beside = {"name": "mesh", "ports": [{"containerPort": 15090}]}
    pod = document() | {"spec": {"containers": [beside, ours]}}
    pod["metadata"]["labels"] = {"app.kubernetes.io/component": "idc"}
    found = pod_of(pod, {})
    assert found is not None
    assert found.ports == (("peer", 7102, "TCP"), ("gateway-1-udp", 7100, "UDP"))


@pytest.mark.parametrize(("phase", "served"), [("Serving", True), ("Unready", True), ("", False)])
def test_it_has_served_if_the_status_said_so(phase: str, served: bool) -> None:
    found = pod_of(document(), {"phase": phase})
    assert found is not None
    assert found.served is served


@pytest.mark.parametrize(
    ("pod", "trouble"),
    [
        (waits("ImagePullBackOff"), "idc: ImagePullBackOff"),
        (waits("ContainerCreating"), ""),
        (
            waits("CrashLoopBackOff", lastState={"terminated": {"exitCode": 1}}),
            "idc: CrashLoopBackOff, after it ended with 1",
        ),
        (
            document(conditions=[{
                "type": "PodScheduled", "status": "False", "message": "0/1 nodes: no memory"}]),
            "no node for it: 0/1 nodes: no memory",
        ),
        (document(containerStatuses=[{"name": "idc", "state": {"running": {}}}]), ""),
    ],
)  # fmt: skip
def test_what_troubles_a_pod(pod: Any, trouble: str) -> None:
    found = pod_of(pod, {})
    assert found is not None
    assert found.trouble == trouble


def test_whose_object_it_is() -> None:
    metadata = {"name": "fra", "namespace": "im", "uid": "u", "generation": 4}
    assert owner_of({"kind": "IDC", "metadata": metadata}) == Owner("IDC", "im", "fra", "u", 4)
    going = {**metadata, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert owner_of({"kind": "IDC", "metadata": going}).deleting


@pytest.mark.parametrize(
    ("until", "drills_from", "down"),
    [
        ("2026-01-01T00:05:00Z", ["im-fra"], True),
        ("2026-01-01T01:05:00+01:00", ["im-fra"], True),
        ("2026-01-01T00:00:00Z", ["im-fra"], False),  # its time is over
        ("2026-01-01T00:05:00Z", [], False),  # it takes no drills
        ("2026-01-01T00:05:00", ["im-fra"], False),  # of which zone?
        ("for ever", ["im-fra"], False),
        ("", ["im-fra"], False),
    ],
)
def test_a_mark_keeps_an_idc_down_for_its_time(
    until: str, drills_from: list[str], down: bool
) -> None:
    metadata = {"annotations": {DOWN_UNTIL: until}}
    found = down_until(
        {"metadata": metadata, "spec": {"drills_from": drills_from}}, "2026-01-01T00:00:00Z"
    )
    assert found == (until if down else "")
