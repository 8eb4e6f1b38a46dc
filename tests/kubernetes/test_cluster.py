"""What tests may rely on: a cluster that works as others do, and of which nothing stays."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imctl.testing.cluster import image
from imctl.testing.cluster.cluster import CGROUPS, Cluster, Traces, remove_leftovers, running
from imctl.testing.cluster.programs import Programs

SERVER = """
import socket
listener = socket.create_server(("", 8080))
while True:
    connection, _ = listener.accept()
    connection.sendall(b"hello\\n")
    connection.close()
"""


def until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def greeted(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(100) == b"hello\n"
    except OSError:
        return False


def test_a_service_leads_from_outside_and_from_a_pod_to_a_deployments_pods(
    cluster: Cluster, namespace: str
) -> None:
    labels = {"app": "greeter"}
    container = {
        "name": "greeter",
        "image": image.NAME,
        "imagePullPolicy": "Never",
        "command": ["python3.11", "-c", SERVER],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "greeter"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "greeter"},
        "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": 8080}]},
    }
    cluster.apply(deployment, service, namespace=namespace)
    own = ("--namespace", namespace)
    cluster.kubectl("rollout", "status", *own, "deployment/greeter", "--timeout=180s")
    spec = json.loads(cluster.kubectl("get", *own, "service/greeter", "-o", "json"))["spec"]
    until(lambda: greeted(cluster.layout.node_address, spec["ports"][0]["nodePort"]), 60)
    ask = f"import socket; print(socket.create_connection(('{spec['clusterIP']}', 8080)).recv(9))"
    command = ("exec", *own, "deployment/greeter", "--", "python3.11", "-c", ask)
    assert "hello" in cluster.kubectl(*command)
    # A pod that is gone is replaced.
    cluster.kubectl("delete", *own, "pod", "--selector=app=greeter", "--wait=false")
    cluster.kubectl("rollout", "status", *own, "deployment/greeter", "--timeout=180s")
    until(lambda: greeted(cluster.layout.node_address, spec["ports"][0]["nodePort"]), 60)


@pytest.mark.nightly
def test_a_second_cluster_runs_beside_it_and_nothing_of_it_stays(
    cluster: Cluster, cluster_programs: Programs, tmp_path: Path
) -> None:
    with running(cluster_programs, tmp_path) as second:
        assert second.layout.node_address != cluster.layout.node_address
        names = json.loads(second.kubectl("get", "namespaces", "-o", "json"))["items"]
        assert "default" in {name["metadata"]["name"] for name in names}
        traces = second.traces
        assert traces and len(traces.left()) > 10
    assert traces.left() == []


KILLED = """
import json, sys, time
from pathlib import Path
from imctl.testing.cluster import programs
from imctl.testing.cluster.cluster import running
with running(programs.find(), Path(sys.argv[1])) as cluster:
    print(json.dumps(cluster.traces), flush=True)
    time.sleep(600)
"""


@pytest.mark.nightly
def test_a_cluster_ends_with_whoever_started_it_and_was_killed(
    cluster_programs: Programs, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        traces = Traces(*json.loads(starter.stdout.readline()))
        starter.kill()

    def stays(path: str) -> bool:
        """Nobody was there to remove its folder, which is pytest's, and its cgroups."""
        return path == traces.root or Path(path).is_relative_to(CGROUPS)

    until(lambda: all(stays(path) for path in traces.left()), 20)
    remove_leftovers()
    assert traces.left() == [traces.root]
