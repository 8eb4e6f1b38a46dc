"""A GatewayCluster on a real API server without nodes: what it takes, repairs, scales, lets go."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from imctl.testing.cluster.cluster import Cluster as ApiServer
from tests.kubernetes.test_admission import GATEWAYS, IDC, apply, region
from tests.kubernetes.test_operator_live import SEEN_S, Operators, prepare, until

BOUNDS = {"min": 3, "max": 4, "connections": 8000}


def test_gateways_are_made_repaired_scaled_and_deleted(
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
    apply(api_server, namespace, GATEWAYS)
    operators.start()

    def status() -> dict[str, object]:
        found: dict[str, object] = operators.get("gatewaycluster", "fra").get("status", {})
        return found

    reasons = [
        "IDC fra runs its own gateways: say `gateways: apart` there",
        "replicas: expected at most 1, the `gateways` of fra in Region two-idc, got 2",
    ]
    # One that has just started may not have seen the Region or the IDC yet.
    until(lambda: (status().get("phase"), status().get("blocked_by")) == ("Blocked", reasons))
    roomy = region()
    roomy["spec"]["idcs"][0]["gateways"] = 4
    apply(api_server, namespace, roomy)
    apart = copy.deepcopy(IDC)
    apart["spec"]["gateways"] = "apart"
    apply(api_server, namespace, apart)
    until(lambda: status().get("phase") == "Starting")
    until(lambda: operators.get("pod", "fra-gateway-2") is not None)
    assert operators.get("poddisruptionbudget", "fra-gateway")["spec"]["maxUnavailable"] == 1

    api_server.kubectl("delete", "service", "fra-gateway-1", "--namespace", namespace)
    until(lambda: operators.get("service", "fra-gateway-1") is not None, SEEN_S)

    # The autoscaler knows no metric here, but its bounds, and scales the object itself.
    bounds = json.dumps({"spec": {"autoscaling": BOUNDS}})
    patch = ("patch", "gatewaycluster", "fra", "--namespace", namespace, "--type=merge", "-p")
    api_server.kubectl(*patch, bounds)
    until(lambda: operators.get("horizontalpodautoscaler", "fra-gateway") is not None, SEEN_S)
    until(lambda: operators.get("gatewaycluster", "fra")["spec"]["replicas"] == 3)
    until(lambda: operators.get("service", "fra-gateway-3") is not None, SEEN_S)
    # First without it: as long as it is there it may set its lower bound again.
    api_server.kubectl(*patch, json.dumps({"spec": {"autoscaling": None}}))
    until(lambda: operators.get("horizontalpodautoscaler", "fra-gateway") is None, SEEN_S)
    api_server.kubectl(*patch, json.dumps({"spec": {"replicas": 1}}))
    until(lambda: operators.get("statefulset", "fra-gateway")["spec"]["replicas"] == 1, SEEN_S)

    api_server.kubectl("delete", "gatewaycluster", "fra", "--namespace", namespace, "--wait=false")
    until(lambda: operators.get("statefulset", "fra-gateway") is None)
    assert operators.get("statefulset", "fra-idc") is not None
