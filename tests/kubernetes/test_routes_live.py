"""A RouteCluster on a real API server without nodes: what it takes, repairs, scales, lets go."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from imctl.testing.cluster.cluster import Cluster as ApiServer
from tests.kubernetes.test_admission import IDC, ROUTES, apply
from tests.kubernetes.test_operator_live import SEEN_S, Operators, prepare, until


def test_routes_are_made_repaired_scaled_and_deleted(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    operators = Operators(api_server, namespace, tmp_path)
    try:
        go(api_server, operators)
    finally:
        operators.end()


def go(api_server: ApiServer, operators: Operators) -> None:
    namespace = operators.namespace
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    api_server.kubectl("label", "namespace", namespace, restricted)
    prepare(api_server, namespace)
    apply(api_server, namespace, ROUTES)
    operators.start()

    def status() -> dict[str, object]:
        found: dict[str, object] = operators.get("routecluster", "fra").get("status", {})
        return found

    def replicas() -> int:
        return int(operators.get("deployment", "fra-route")["spec"]["replicas"])

    reasons = ["IDC fra runs its own gateways: say `gateways: apart` there"]
    # One that has just started may not have seen the Region or the IDC yet.
    until(lambda: (status().get("phase"), status().get("blocked_by")) == ("Blocked", reasons))
    apart = copy.deepcopy(IDC)
    apart["spec"]["gateways"] = "apart"
    apply(api_server, namespace, apart)
    # The namespace takes its pods; no node does.
    until(lambda: (status().get("phase"), status().get("replicas")) == ("Starting", 2))
    assert operators.get("poddisruptionbudget", "fra-route")["spec"]["maxUnavailable"] == 1

    api_server.kubectl("delete", "deployment", "fra-route", "--namespace", namespace)
    until(lambda: operators.get("deployment", "fra-route") is not None, SEEN_S)

    patch = ("patch", "routecluster", "fra", "--namespace", namespace, "--type=merge", "-p")
    api_server.kubectl(*patch, json.dumps({"spec": {"autoscaling": {"min": 3, "max": 4}}}))
    until(lambda: operators.get("horizontalpodautoscaler", "fra-route") is not None, SEEN_S)
    metrics = operators.get("horizontalpodautoscaler", "fra-route")["spec"]["metrics"]
    assert metrics[0]["resource"]["target"]["averageUtilization"] == 60
    # It knows no CPU here, but its bounds, and scales the object itself.
    until(lambda: operators.get("routecluster", "fra")["spec"]["replicas"] == 3)
    until(lambda: replicas() == 3, SEEN_S)
    api_server.kubectl(*patch, json.dumps({"spec": {"autoscaling": None}}))
    until(lambda: operators.get("horizontalpodautoscaler", "fra-route") is None, SEEN_S)
    api_server.kubectl("scale", "routecluster", "fra", "--replicas=1", "--namespace", namespace)
    until(lambda: replicas() == 1, SEEN_S)

    api_server.kubectl("delete", "routecluster", "fra", "--namespace", namespace, "--wait=false")
    until(lambda: operators.get("deployment", "fra-route") is None)
    assert operators.get("statefulset", "fra-idc") is not None
