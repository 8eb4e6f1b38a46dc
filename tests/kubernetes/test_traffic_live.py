"""Moves and deletions on a real API server, about a deployment whose processes really run."""

from __future__ import annotations

import json
import signal
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.testing.cli import imctl, ok
from imctl.testing.cluster.cluster import Cluster as ApiServer
from imctl.testing.lab import lab_region
from tests.kubernetes.test_admission import IDC, OPERATION, REPLICATION, apply
from tests.kubernetes.test_operator_live import Operators, until


def operation(name: str, **spec: object) -> dict[str, object]:
    wish = {"region": "three-idc", "certificate": "imctl-operator", **spec}
    return OPERATION | {"metadata": {"name": name}, "spec": wish}


def idc(name: str) -> dict[str, object]:
    """One whose pod nobody starts: its process runs in the deployment beside."""
    spec = {**IDC["spec"], "region": "three-idc", "idc": name, "role_certificate": "imctl-operator"}
    return IDC | {"metadata": {"name": name}, "spec": spec}


def view(kind: str) -> dict[str, object]:
    spec = {"region": "three-idc", "certificate": "imctl-operator"}
    return REPLICATION | {"kind": kind, "metadata": {"name": "shown"}, "spec": spec}


def keep_certificate(api_server: ApiServer, namespace: str, pki: Path) -> None:
    """The operator's, in the Secret that the objects of these tests name."""
    api_server.kubectl(
        "create", "secret", "generic", "imctl-operator", "--namespace", namespace,
        f"--from-file=ca.crt={pki / 'ca.pem'}",
        f"--from-file=tls.crt={pki / 'operator.pem'}",
        f"--from-file=tls.key={pki / 'operator.key'}",
    )  # fmt: skip


@pytest.mark.e2e
def test_moves_are_begun_once_and_an_idc_is_drained_before_it_goes(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    file, data = lab_region(tmp_path), tmp_path / "deployment"
    operators = Operators(api_server, namespace, tmp_path)
    ok(data, "up", file, "--data", data)
    try:
        apply(api_server, namespace, yaml.safe_load(file.read_text()))
        keep_certificate(api_server, namespace, data / "pki")
        apply(api_server, namespace, idc("iad"))
        for kind in ("Replication", "GeoPolicy"):
            apply(api_server, namespace, view(kind))
        first = operators.start()
        until(lambda: operators.holder() != "")
        until(lambda: seen(operators, "replication").get("worst_lag_ms") is not None)
        until(lambda: holds(operators, "geopolicy"))
        until(lambda: flows(operators) == set(permutations(("fra", "iad", "sin"), 2)))
        apply(api_server, namespace, operation("away", move="drain", idc="fra"))
        until(lambda: status(operators, "away").get("operation") is not None)
        first.send_signal(signal.SIGKILL)
        operators.start()
        until(lambda: status(operators, "away").get("phase") == "Ended")
        found = status(operators, "away")
        assert (found["state"], found["blockers"]) == ("done", [])
        assert [step["name"] for step in found["steps"]] == ["drain", "drained"]
        (begun,) = json.loads(ok(data, "op", "list", "-o", "json"))
        assert begun["by"] == f"TrafficOperation {namespace}/away"

        apply(api_server, namespace, operation("again", move="drain", idc="fra"))
        until(lambda: status(operators, "again").get("phase") == "Refused")
        rules = [each["rule"] for each in status(operators, "again")["blockers"]]
        assert "transition" in rules
        reasons = ("get", "events", "--namespace", namespace, "-o", "jsonpath={.items[*].reason}")
        events = {"Step", "Done", "Refused"}
        until(lambda: events <= set(api_server.kubectl(*reasons).split()))

        until(lambda: is_reached(operators.get("idc", "iad")["status"]))
        until(lambda: seen(operators, "geopolicy")["idcs"][0]["state"] == "drained")
        until(lambda: holds(operators, "geopolicy"))
        # As `helm uninstall` does: its Region is deleted with it.
        delete = ("delete", "idc/iad", "region/three-idc", "--namespace", namespace, "--wait=false")
        api_server.kubectl(*delete)
        until(lambda: operators.get("idc", "iad") is None)
        until(lambda: operators.get("region", "three-idc") is None)
        begun = [each["idc"] for each in json.loads(ok(data, "op", "list", "-o", "json"))]
        assert begun == ["fra", "iad"]
    finally:
        operators.end()
        imctl(data, "down")


def seen(operators: Operators, kind: str) -> dict[str, Any]:
    status: dict[str, Any] = operators.get(kind, "shown").get("status", {})
    return status


def flows(operators: Operators) -> set[tuple[str, str]]:
    return {(each["source"], each["target"]) for each in seen(operators, "replication")["flows"]}


def is_reached(status: dict[str, Any]) -> bool:
    """Its process serves, and its pod is none. An answer may be late once."""
    process = status.get("process") or {}
    conditions = {each["type"]: each["status"] for each in status["conditions"]}
    return (process.get("state"), process.get("serving"), conditions) == (
        "active", True, {"Ready": "False", "Reachable": "True"},
    )  # fmt: skip


def holds(operators: Operators, kind: str) -> bool:
    return [each["status"] for each in seen(operators, kind).get("conditions", ())] == ["True"]


def status(operators: Operators, name: str) -> dict[str, Any]:
    found = operators.get("trafficoperation", name)
    said: dict[str, Any] = found.get("status", {})
    return said
