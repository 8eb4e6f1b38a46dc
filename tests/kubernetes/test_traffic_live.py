"""TrafficOperations on a real API server, about a deployment whose processes really run."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.testing.cli import imctl, ok
from imctl.testing.cluster.cluster import Cluster as ApiServer
from imctl.testing.lab import lab_region
from tests.kubernetes.test_admission import OPERATION, apply
from tests.kubernetes.test_operator_live import Operators, until


def operation(name: str, **spec: object) -> dict[str, object]:
    wish = {"region": "three-idc", "certificate": "imctl-operator", **spec}
    return OPERATION | {"metadata": {"name": name}, "spec": wish}


@pytest.mark.e2e
def test_a_drain_is_begun_once_and_followed_by_whoever_leads(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    file, data = lab_region(tmp_path), tmp_path / "deployment"
    operators = Operators(api_server, namespace, tmp_path)
    ok(data, "up", file, "--data", data)
    try:
        apply(api_server, namespace, yaml.safe_load(file.read_text()))
        pki = data / "pki"
        api_server.kubectl(
            "create", "secret", "generic", "imctl-operator", "--namespace", namespace,
            f"--from-file=ca.crt={pki / 'ca.pem'}",
            f"--from-file=tls.crt={pki / 'operator.pem'}",
            f"--from-file=tls.key={pki / 'operator.key'}",
        )  # fmt: skip
        first = operators.start()
        until(lambda: operators.holder() != "")
        apply(api_server, namespace, operation("away", move="drain", idc="fra"))
        until(lambda: status(operators, "away").get("operation") is not None)
        first.send_signal(signal.SIGKILL)
        operators.start()
        until(lambda: status(operators, "away").get("phase") == "Ended")
        found = status(operators, "away")
        assert (found["state"], found["blockers"]) == ("done", [])
        assert [step["name"] for step in found["steps"]] == ["drain", "drained"]
        listed = ok(data, "op", "list")
        assert listed.count("drain-fra-") == 1
        assert f"TrafficOperation {namespace}/away" in listed

        apply(api_server, namespace, operation("again", move="drain", idc="fra"))
        until(lambda: status(operators, "again").get("phase") == "Refused")
        rules = [each["rule"] for each in status(operators, "again")["blockers"]]
        assert "transition" in rules
        shown = api_server.kubectl("get", "imop", "--namespace", namespace)
        assert "drain-fra-2 is done" not in shown  # only with -o wide
        events = api_server.kubectl(
            "get", "events", "--namespace", namespace, "-o", "jsonpath={.items[*].reason}"
        ).split()
        assert {"Step", "Done", "Refused"} <= set(events)
    finally:
        operators.end()
        imctl(data, "down")


def status(operators: Operators, name: str) -> dict[str, Any]:
    found = operators.get("trafficoperation", name)
    said: dict[str, Any] = found.get("status", {})
    return said
