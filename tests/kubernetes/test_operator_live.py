"""Operators as processes on a real API server: they make, repair, take over and let go."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from imctl.target.places import free_ports
from imctl.testing.cluster.cluster import Cluster as ApiServer
from tests.kubernetes.test_admission import IDC, apply, region

TAKEOVER_S = 30.0  # the Lease lasts 12 s
LIMIT_S = 120.0  # for a start on a busy machine
SEEN_S = 30.0  # before it would be looked for without a reason


class Operators:
    """``kubeconfig``: as whom they act. ``server``: whom the test asks."""

    def __init__(
        self, server: ApiServer, namespace: str, folder: Path, kubeconfig: Path | None = None
    ) -> None:
        self._server, self.namespace, self._folder = server, namespace, folder
        self._kubeconfig = kubeconfig or server.kubeconfig
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "imctl", "operator", "run"]
        command += ["--namespace", self.namespace, "--lease-namespace", self.namespace]
        command += ["--audit", str(self._folder / "audit"), *more]
        environment = {**os.environ, "KUBECONFIG": str(self._kubeconfig)}
        with (self._folder / f"operator-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)

    def holder(self) -> str:
        found = self.get("lease", "imctl-operator")
        return str(found["spec"]["holderIdentity"]) if found else ""

    def get(self, kind: str, name: str) -> Any:
        """None for what is not there."""
        shown = self._server.kubectl(
            "get", kind, name, "--namespace", self.namespace, "--ignore-not-found", "-o", "json"
        )
        return json.loads(shown) if shown else None

    def phase(self) -> str:
        return str(self.get("idc", "fra").get("status", {}).get("phase", ""))


@pytest.fixture
def operators(api_server: ApiServer, namespace: str, tmp_path: Path) -> Iterator[Operators]:
    found = Operators(api_server, namespace, tmp_path)
    yield found
    found.end()


def until(what: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
    """How long it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < limit_s
        time.sleep(0.2)
    return time.monotonic() - began


def prepare(server: ApiServer, namespace: str) -> None:
    """All that an IDC needs."""
    apply(server, namespace, region())
    secrets = {
        "fra-certificate": ("ca.crt", "tls.crt", "tls.key"),
        "region-keys": ("region-keys.json",),
    }
    for name, keys in secrets.items():
        data = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        apply(server, namespace, data | {"stringData": dict.fromkeys(keys, "x")})
    apply(server, namespace, IDC)


def say_ready(server: ApiServer, namespace: str) -> None:
    """What a kubelet would say of the pod; there is no node here."""
    status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    server.kubectl(
        "patch", "pod", "fra-idc-0", "--namespace", namespace, "--subresource=status",
        "--type=merge", "-p", json.dumps(status),
    )  # fmt: skip


def test_an_idc_is_made_repaired_and_deleted(api_server: ApiServer, operators: Operators) -> None:
    namespace = operators.namespace
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    api_server.kubectl("label", "namespace", namespace, restricted)
    prepare(api_server, namespace)
    operators.start()
    until(lambda: operators.phase() == "Starting")
    until(lambda: operators.get("pod", "fra-idc-0") is not None)
    say_ready(api_server, namespace)
    until(lambda: operators.phase() == "Serving", SEEN_S)
    events = ("get", "events", "--namespace", namespace, "-o", "name")
    until(lambda: "event/fra." in api_server.kubectl(*events))

    api_server.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
    until(lambda: operators.get("service", "fra-idc-peer") is not None, SEEN_S)
    scale = ("scale", "statefulset", "fra-idc", "--replicas=0", "--namespace", namespace)
    api_server.kubectl(*scale)
    until(lambda: operators.get("statefulset", "fra-idc")["spec"]["replicas"] == 1, SEEN_S)

    api_server.kubectl("delete", "idc", "fra", "--namespace", namespace, "--wait=false")
    until(lambda: operators.get("statefulset", "fra-idc") is None)
    assert operators.get("persistentvolumeclaim", "data-fra-idc-0") is not None


def test_a_changed_region_waits_until_the_pod_is_deleted(
    api_server: ApiServer, operators: Operators
) -> None:
    namespace = operators.namespace
    prepare(api_server, namespace)
    operators.start()
    until(lambda: operators.get("pod", "fra-idc-0") is not None)
    say_ready(api_server, namespace)
    until(lambda: operators.phase() == "Serving", SEEN_S)
    before = operators.get("pod", "fra-idc-0")["metadata"]
    changed = region()
    changed["spec"]["client"] = {"grace_ms": 11_000}
    apply(api_server, namespace, changed)
    until(lambda: operators.get("idc", "fra")["status"]["outdated"], SEEN_S)
    assert operators.get("pod", "fra-idc-0")["metadata"]["uid"] == before["uid"]
    delete = ("delete", "pod", "fra-idc-0", "--namespace", namespace, "--force")
    api_server.kubectl(*delete, "--grace-period=0")
    until(lambda: not operators.get("idc", "fra")["status"]["outdated"])


def test_a_paused_object_is_not_repaired(api_server: ApiServer, operators: Operators) -> None:
    namespace = operators.namespace
    prepare(api_server, namespace)
    operators.start()
    until(lambda: operators.get("service", "fra-idc-peer") is not None)
    paused = copy.deepcopy(IDC)
    paused["spec"]["paused"] = True
    apply(api_server, namespace, paused)
    until(lambda: operators.phase() == "Paused", SEEN_S)
    api_server.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
    time.sleep(5)
    assert operators.get("service", "fra-idc-peer") is None
    apply(api_server, namespace, paused | {"spec": paused["spec"] | {"paused": False}})
    until(lambda: operators.get("service", "fra-idc-peer") is not None, SEEN_S)


def test_what_the_api_server_does_not_take_stands_in_the_status(
    api_server: ApiServer, operators: Operators
) -> None:
    namespace = operators.namespace
    prepare(api_server, namespace)
    outside = copy.deepcopy(IDC)
    outside["spec"]["service"] = "NodePort"  # its region's ports are none of a node's
    apply(api_server, namespace, outside)
    operators.start()
    until(lambda: operators.phase() == "Blocked")
    (why,) = operators.get("idc", "fra")["status"]["blocked_by"]
    assert "provided port is not in the valid range" in why
    apply(api_server, namespace, outside | {"spec": outside["spec"] | {"service": "ClusterIP"}})
    until(lambda: operators.phase() == "Starting")


def test_the_next_goes_on_when_the_active_one_is_killed(
    api_server: ApiServer, operators: Operators, figures: Callable[[str, object], None]
) -> None:
    namespace = operators.namespace
    prepare(api_server, namespace)
    first = operators.start()
    until(lambda: operators.get("service", "fra-idc-peer") is not None)
    _, at = stand_by(operators)
    held = operators.holder()
    assert metric(at, "im_operator_leader") == metric(at, "im_operator_objects", kind="IDC") == 0
    first.send_signal(signal.SIGKILL)
    api_server.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
    took = until(lambda: operators.holder() not in ("", held), TAKEOVER_S)
    until(lambda: metric(at, "im_operator_leader") == 1)
    until(lambda: metric(at, "im_operator_objects", kind="IDC") == 1)
    until(lambda: operators.get("service", "fra-idc-peer") is not None, SEEN_S)
    figures("takeover of the operator's lease after kill -9, s", round(took, 1))


def stand_by(operators: Operators) -> tuple[subprocess.Popen[bytes], str]:
    """Another one, which waits for the Lease and could take it; where its metrics are."""
    (port,) = free_ports(1)
    at = f"127.0.0.1:{port}"
    process = operators.start("--metrics", at)
    until(lambda: asked(at, "/readyz") == 200)
    return process, at


def test_one_that_was_frozen_ends_instead_of_writing(
    api_server: ApiServer, operators: Operators
) -> None:
    namespace = operators.namespace
    prepare(api_server, namespace)
    first = operators.start()
    until(lambda: operators.get("service", "fra-idc-peer") is not None)
    second, _ = stand_by(operators)
    held = operators.holder()
    first.send_signal(signal.SIGSTOP)
    until(lambda: operators.holder() not in ("", held), TAKEOVER_S)
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 1
    assert second.poll() is None
    assert operators.holder() != held


def test_one_that_is_told_to_stop_gives_the_lease_back(
    api_server: ApiServer, operators: Operators
) -> None:
    first = operators.start()
    until(lambda: operators.holder() != "")
    first.terminate()
    assert first.wait(60) == 0
    assert operators.holder() == ""


def test_its_metrics_say_who_leads_and_what_fails(
    api_server: ApiServer, operators: Operators
) -> None:
    namespace = operators.namespace
    prepare(api_server, namespace)
    (port,) = free_ports(1)
    first = f"127.0.0.1:{port}"
    operators.start("--metrics", first)
    until(lambda: operators.phase() == "Starting")
    _, second = stand_by(operators)
    assert asked(first, "/livez") == asked(first, "/readyz") == 200
    assert metric(first, "im_operator_leader") == 1 and metric(second, "im_operator_leader") == 0
    renewed = "im_operator_lease_renewed_timestamp_seconds"
    before = metric(first, renewed)
    assert abs(time.time() - before) < 12
    until(lambda: metric(first, renewed) > before, SEEN_S)

    assert metric(first, "im_operator_objects", kind="IDC") == 1
    assert metric(second, "im_operator_objects", kind="IDC") == 0
    looks = ("im_operator_reconcile_seconds_count", {"queue": "objects", "kind": "IDC"})
    assert metric(first, looks[0], **looks[1]) >= 1
    applied = {"verb": "patch", "resource": "statefulsets"}
    assert metric(first, "im_operator_api_calls_total", **applied) >= 1
    assert metric(first, "im_operator_api_seconds_count", verb="patch") >= 1
    assert metric(first, "im_operator_objects_failing", kind="IDC") == 0

    outside = copy.deepcopy(IDC)
    outside["spec"]["service"] = "NodePort"  # its region's ports are none of a node's
    apply(api_server, namespace, outside)
    until(lambda: metric(first, "im_operator_objects_failing", kind="IDC") == 1)
    failed = {"queue": "objects", "kind": "IDC", "reason": "rejected"}
    until(lambda: metric(first, "im_operator_reconcile_failures_total", **failed) >= 1)
    refused = {"verb": "patch", "resource": "services", "reason": "rejected"}
    assert metric(first, "im_operator_api_failures_total", **refused) >= 1
    apply(api_server, namespace, IDC)
    until(lambda: metric(first, "im_operator_objects_failing", kind="IDC") == 0)


def asked(at: str, path: str) -> int:
    """The status of the answer; 0: none."""
    try:
        with urllib.request.urlopen(f"http://{at}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def metric(at: str, name: str, **labels: str) -> float:
    """0 where there is none."""
    with urllib.request.urlopen(f"http://{at}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


def test_one_without_an_api_server_lives_and_is_not_ready(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    dead, at = free_ports(2)
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{dead}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster],
        "contexts": [context], "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    operators = Operators(api_server, namespace, tmp_path, kubeconfig)
    try:
        operators.start("--metrics", f"127.0.0.1:{at}")
        until(lambda: asked(f"127.0.0.1:{at}", "/livez") == 200)
        assert asked(f"127.0.0.1:{at}", "/readyz") == 503
        assert metric(f"127.0.0.1:{at}", "im_operator_leader") == 0
        until(lambda: unanswered(f"127.0.0.1:{at}") > 0)
    finally:
        operators.end()


def unanswered(at: str) -> float:
    call = {"verb": "get", "resource": "leases", "reason": "unavailable"}
    return metric(at, "im_operator_api_failures_total", **call)
