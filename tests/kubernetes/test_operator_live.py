"""Operators as processes on a real API server: they make, repair, take over and let go."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imctl.testing.cluster.cluster import Cluster as ApiServer
from tests.kubernetes.test_admission import IDC, apply, region

TAKEOVER_S = 15.0
LIMIT_S = 40.0  # for a start on a busy machine


class Operators:
    """``kubeconfig``: as whom they act; None: as the administrator."""

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
    until(lambda: operators.phase() == "Serving", 10)
    events = api_server.kubectl("get", "events", "--namespace", namespace, "-o", "name")
    assert "event/fra." in events

    api_server.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
    until(lambda: operators.get("service", "fra-idc-peer") is not None, 10)
    scale = ("scale", "statefulset", "fra-idc", "--replicas=0", "--namespace", namespace)
    api_server.kubectl(*scale)
    until(lambda: operators.get("statefulset", "fra-idc")["spec"]["replicas"] == 1, 10)

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
    until(lambda: operators.phase() == "Serving", 10)
    before = operators.get("pod", "fra-idc-0")["metadata"]
    changed = region()
    changed["spec"]["client"] = {"grace_ms": 11_000}
    apply(api_server, namespace, changed)
    until(lambda: operators.get("idc", "fra")["status"]["outdated"], 10)
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
    until(lambda: operators.phase() == "Paused", 10)
    api_server.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
    time.sleep(5)
    assert operators.get("service", "fra-idc-peer") is None
    apply(api_server, namespace, paused | {"spec": paused["spec"] | {"paused": False}})
    until(lambda: operators.get("service", "fra-idc-peer") is not None, 10)


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
    operators.start()
    time.sleep(4)
    held = operators.holder()
    first.send_signal(signal.SIGKILL)
    api_server.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
    took = until(lambda: operators.holder() not in ("", held), TAKEOVER_S)
    until(lambda: operators.get("service", "fra-idc-peer") is not None, 10)
    figures("takeover of the operator's lease after kill -9, s", round(took, 1))


def test_one_that_was_frozen_ends_instead_of_writing(
    api_server: ApiServer, operators: Operators
) -> None:
    namespace = operators.namespace
    prepare(api_server, namespace)
    first = operators.start()
    until(lambda: operators.get("service", "fra-idc-peer") is not None)
    second = operators.start()
    time.sleep(4)
    held = operators.holder()
    first.send_signal(signal.SIGSTOP)
    until(lambda: operators.holder() not in ("", held), TAKEOVER_S)
    first.send_signal(signal.SIGCONT)
    assert first.wait(15) == 1
    assert second.poll() is None
    assert operators.holder() != held


def test_one_that_is_told_to_stop_gives_the_lease_back(
    api_server: ApiServer, operators: Operators
) -> None:
    first = operators.start()
    until(lambda: operators.holder() != "")
    first.terminate()
    assert first.wait(15) == 0
    assert operators.holder() == ""
