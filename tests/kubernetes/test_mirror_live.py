"""MirrorMaker 2 of a Replication on a real API server, by an operator with the rights of its chart:
as a Deployment, and as Strimzi's kind where that is there. Its pod is not run: no node takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imctl.testing.cluster.cluster import Cluster as ApiServer
from imctl.testing.cluster.lab import operator_rights, until_known
from tests.kubernetes.test_admission import REPLICATION, apply, region
from tests.kubernetes.test_operator_live import Operators, until

CRD = Path(__file__).parents[3] / "shared" / "crds" / "strimzi-kafkamirrormaker2.yaml"
NAME = "mm2-into-fra"
MIRROR = {"idc": "fra", "secret": "kafka-client"}


def on_kafka(mirrormaker: bool = True) -> Any:
    """``mirrormaker``: it is fra's mirror."""
    document = region()
    for idc in document["spec"]["idcs"]:
        files = {key: f"/k/{key}" for key in ("ca_file", "cert_file", "key_file")}
        idc["engines"] = {"log": {"kafka": {"brokers": [f"{idc['name']}:9093"], **files}}}
    if mirrormaker:
        document["spec"]["idcs"][0]["engines"]["mirror"] = {"mirrormaker2": {}}
    return document


@pytest.fixture
def operators(api_server: ApiServer, namespace: str, tmp_path: Path) -> Iterator[Operators]:
    """Looks as the administrator."""
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    api_server.kubectl("label", "namespace", namespace, restricted)
    apply(api_server, namespace, on_kafka())
    for name in ("imctl-viewer", "kafka-client"):
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        keys = ("ca.crt", "tls.crt", "tls.key")
        apply(api_server, namespace, secret | {"stringData": dict.fromkeys(keys, "x")})
    apply(api_server, namespace, REPLICATION | {"spec": REPLICATION["spec"] | {"mirror": MIRROR}})
    with operator_rights(api_server, namespace, tmp_path) as own:
        working = Operators(api_server, namespace, tmp_path, own)
        working.start()
        try:
            yield Operators(api_server, namespace, tmp_path)
        finally:
            working.end()
    log = (tmp_path / "operator-0.log").read_text()
    assert "forbidden" not in log.lower(), log


def mirrored(operators: Operators) -> tuple[str, str, str]:
    """Status and reason of the condition, and what runs."""
    status = operators.get("replication", "flows").get("status", {})
    for each in status.get("conditions", ()):
        if each["type"] == "Mirrored":
            return each["status"], each["reason"], status.get("mirror", "")
    return "", "", ""


def is_ready(server: ApiServer, operators: Operators, kind: str, name: str) -> None:
    """What a kubelet, or Strimzi, would say."""
    generation = operators.get(kind, name)["metadata"].get("generation", 0)
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "observedGeneration": generation}
    server.kubectl(
        "patch", kind, name, "--namespace", operators.namespace, "--subresource=status",
        "--type=merge", "-p", json.dumps({"status": ready}),
    )  # fmt: skip


def replicas(operators: Operators, kind: str) -> int:
    found = operators.get(kind, NAME)
    return int(found["spec"]["replicas"]) if found else -1


def edit(server: ApiServer, operators: Operators, kind: str) -> None:
    server.kubectl(
        "patch", kind, NAME, "--namespace", operators.namespace, "--type=merge",
        "-p", '{"spec": {"replicas": 3}}',
    )  # fmt: skip
    until(lambda: replicas(operators, kind) == 1)


def test_without_strimzi_it_is_a_deployment(api_server: ApiServer, operators: Operators) -> None:
    runs = f"Deployment {NAME}"
    until(lambda: mirrored(operators) == ("False", "NotReady", runs))
    namespace = operators.namespace
    pods = ("get", "pods", "--namespace", namespace, "-o", "name")
    until(lambda: api_server.kubectl(*pods) != "")  # the namespace takes it
    pod = api_server.kubectl(*pods).strip().removeprefix("pod/")
    is_ready(api_server, operators, "pod", pod)
    until(lambda: mirrored(operators) == ("True", "Ready", runs))
    edit(api_server, operators, "deployment")
    api_server.kubectl("delete", "configmap", NAME, "--namespace", namespace)
    until(lambda: operators.get("configmap", NAME) is not None)

    apply(api_server, namespace, on_kafka(mirrormaker=False))
    until(lambda: mirrored(operators) == ("False", "NotWanted", ""))
    assert operators.get("deployment", NAME) is None
    assert operators.get("configmap", NAME) is None
    apply(api_server, namespace, on_kafka())
    until(lambda: replicas(operators, "deployment") == 1)
    api_server.kubectl("delete", "replication", "flows", "--namespace", namespace)
    until(lambda: operators.get("deployment", NAME) is None)


def test_with_strimzi_it_is_strimzis(api_server: ApiServer, operators: Operators) -> None:
    if not CRD.exists():
        pytest.skip("not run: Strimzi's published CRD is not beside this checkout")
    until(lambda: replicas(operators, "deployment") == 1)
    api_server.kubectl("apply", "--server-side", "-f", str(CRD))
    try:
        until_known(api_server, "kafkamirrormaker2s")
        runs = f"KafkaMirrorMaker2 {NAME}"
        until(lambda: mirrored(operators) == ("False", "NotReady", runs))
        assert operators.get("deployment", NAME) is None
        is_ready(api_server, operators, "kafkamirrormaker2", NAME)
        until(lambda: mirrored(operators) == ("True", "Ready", runs))
        edit(api_server, operators, "kafkamirrormaker2")

        apply(api_server, operators.namespace, on_kafka(mirrormaker=False))
        until(lambda: operators.get("kafkamirrormaker2", NAME) is None)
        apply(api_server, operators.namespace, on_kafka())
        until(lambda: replicas(operators, "kafkamirrormaker2") == 1)
    finally:
        api_server.kubectl("delete", "-f", str(CRD))
    until(lambda: replicas(operators, "deployment") == 1)  # Strimzi is gone
