"""An IMCluster on a real API server without nodes: when its pods come and go, and where the IDC's
Services lead. What a kubelet would say of a pod is said by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from imctl.reconcile.seen import is_ready
from imctl.testing.cluster.cluster import Cluster as ApiServer
from tests.kubernetes.test_admission import CORES, IDC, apply, region
from tests.kubernetes.test_operator_live import SEEN_S, Operators, prepare, until
from tests.unit.test_im_cluster import FAR


def test_cores_stand_by_take_over_and_make_room_for_one_of_its_own(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    operators = Operators(api_server, namespace, tmp_path)
    try:
        go(api_server, operators)
    finally:
        operators.end()


def say(server: ApiServer, namespace: str, pod: str, ready: bool) -> None:
    """It runs; the core that serves is ready."""
    running = {"startedAt": "2026-01-01T00:00:00Z"}
    container = {
        "name": "im", "image": "imctl:1", "imageID": "", "ready": ready, "restartCount": 0,
        "state": {"running": running},
    }  # fmt: skip
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    said = {"phase": "Running", "conditions": conditions, "containerStatuses": [container]}
    server.kubectl(
        "patch", "pod", pod, "--namespace", namespace, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": said}),
    )  # fmt: skip


def go(api_server: ApiServer, operators: Operators) -> None:
    namespace = operators.namespace
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    api_server.kubectl("label", "namespace", namespace, restricted)
    prepare(api_server, namespace)
    operators.start()
    until(lambda: operators.get("pod", "fra-idc-0") is not None)
    apply(api_server, namespace, CORES)

    def status() -> dict[str, Any]:
        found: dict[str, Any] = operators.get("imcluster", "fra").get("status", {})
        return found

    def blocked_by(why: str) -> bool:
        return status().get("blocked_by") == [why]

    def leads_to() -> set[str]:
        """Pods to which the Service for peers does. The controller of endpoints makes none of pods
        without a node."""
        spec = operators.get("service", "fra-idc-peer")["spec"]
        labels = ",".join(f"{name}={value}" for name, value in spec["selector"].items())
        shown = api_server.kubectl("get", "pods", "--namespace", namespace, "-l", labels, "-ojson")
        return {
            each["metadata"]["name"]
            for each in json.loads(shown)["items"]
            if spec.get("publishNotReadyAddresses") or is_ready(each["status"])
        }

    until(lambda: blocked_by("IDC fra has a core of its own only: say `cores: shared` there"))
    far = region()
    far["spec"]["idcs"][0]["engines"] = FAR
    apply(api_server, namespace, far)
    shared = copy.deepcopy(IDC)
    shared["spec"] |= {"gateways": "apart", "cores": "shared"}
    apply(api_server, namespace, shared)
    made = "fra-idc-0 was made without `cores: shared`, and has it once it is deleted"
    until(lambda: blocked_by(made))
    say(api_server, namespace, "fra-idc-0", ready=False)
    # That one knows of no others, so it is found as before, ready or not.
    until(lambda: leads_to() == {"fra-idc-0"}, SEEN_S)

    api_server.kubectl("delete", "pod", "fra-idc-0", "--namespace", namespace, "--wait=false")
    api_server.kubectl(
        "delete", "pod", "fra-idc-0", "--namespace", namespace, "--force", "--grace-period=0",
        "--ignore-not-found",
    )  # fmt: skip
    until(lambda: operators.get("pod", "fra-im-3") is not None, SEEN_S)
    say(api_server, namespace, "fra-idc-0", ready=True)
    for number in (2, 3):
        say(api_server, namespace, f"fra-im-{number}", ready=False)
    until(lambda: leads_to() == {"fra-idc-0"}, SEEN_S)
    until(lambda: (status().get("phase"), status().get("ready")) == ("Serving", 2), SEEN_S)
    assert operators.get("poddisruptionbudget", "fra-idc")["spec"]["minAvailable"] == 0

    say(api_server, namespace, "fra-idc-0", ready=False)
    say(api_server, namespace, "fra-im-3", ready=True)
    until(lambda: leads_to() == {"fra-im-3"}, SEEN_S)
    until(lambda: status().get("serving") == "fra-im-3", SEEN_S)
    until(lambda: operators.get("idc", "fra")["status"]["ready"] is True, SEEN_S)
    assert operators.phase() == "Serving"

    # Back to one core: the others go first.
    apart = copy.deepcopy(shared)
    del apart["spec"]["cores"]
    apply(api_server, namespace, apart)
    until(lambda: operators.get("statefulset", "fra-im")["spec"]["replicas"] == 0, SEEN_S)
    for number in (2, 3):
        api_server.kubectl(
            "delete", "pod", f"fra-im-{number}", "--namespace", namespace, "--force",
            "--grace-period=0", "--ignore-not-found",
        )  # fmt: skip
    until(lambda: operators.get("idc", "fra")["status"]["blocked_by"] == [], SEEN_S)
    until(lambda: "--standby" not in str(operators.get("statefulset", "fra-idc")), SEEN_S)
    budget = operators.get("poddisruptionbudget", "fra-idc")["spec"]
    assert budget["maxUnavailable"] == 1 and "minAvailable" not in budget
    assert operators.get("service", "fra-idc-peer")["spec"]["publishNotReadyAddresses"] is True
