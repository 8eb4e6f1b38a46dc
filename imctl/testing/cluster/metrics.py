"""What a HorizontalPodAutoscaler asks: the cluster's metrics APIs, answered by this process with
what the pods themselves say. In production they are Prometheus' adapter and metrics-server.

Custom metrics are read from each pod's own `/metrics`, the CPU from the kubelet.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from imcore import pki
from imcore.listener import Listener
from imctl.target.places import free_port
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.settings import NODE
from services.https import Https

CUSTOM, RESOURCE = "custom.metrics.k8s.io/v1beta2", "metrics.k8s.io/v1beta1"
WINDOW_S = 10  # of the kubelet's figures
# In the cluster's network: the sum of a metric over all labels, of the pod at this address.
_READ = """
import ssl, sys, urllib.request
url, metric, ca, cert, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.check_hostname = False
context.load_cert_chain(cert, key)
with urllib.request.urlopen(url, context=context, timeout=5) as page:
    rows = [line for line in page.read().decode().splitlines() if line.startswith(metric)]
print(sum(float(row.rpartition(" ")[2]) for row in rows))
"""


class Metrics:
    """``certificate``: of a viewer, ``viewer.pem`` and so on in this folder; ``port``: of the
    pods' `/metrics`. ``asked``: what was asked for so far."""

    def __init__(self, cluster: Cluster, certificate: Path, port: int) -> None:
        self._cluster = cluster
        self._certificate = certificate
        self._port = port
        self.asked: set[str] = set()

    @contextlib.asynccontextmanager
    async def served(self, folder: Path, namespace: str) -> AsyncIterator[None]:
        """While the block runs, the API server has both APIs, by a Service of this namespace."""
        host, port = self._cluster.layout.machine_address, free_port()
        pki.init(folder, {"metrics": (host,)}, datetime.now(UTC))
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(folder / "metrics.pem", folder / "metrics.key")
        app = web.Application()
        app.router.add_get(f"/apis/{CUSTOM}", _resources(CUSTOM, "pods/{name}", "MetricValueList"))
        app.router.add_get(f"/apis/{RESOURCE}", _resources(RESOURCE, "pods", "PodMetrics"))
        app.router.add_get(f"/apis/{CUSTOM}/namespaces/{{ns}}/pods/*/{{name}}", self._custom)
        app.router.add_get(f"/apis/{RESOURCE}/namespaces/{{ns}}/pods", self._resource)
        server = Https(app, Listener)
        await server.start(host, port, tls)
        objects = _objects(namespace, host, port)
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        try:
            await asyncio.to_thread(self._cluster.kubectl, "apply", "-f", "-", given=text)
            yield
        finally:
            gone = ("delete", "--ignore-not-found", "-f", "-")
            await asyncio.to_thread(self._cluster.kubectl, *gone, given=text)
            await server.stop()

    async def _pods(self, request: web.Request) -> list[dict[str, Any]]:
        """Those that it is asked about, and that run."""
        namespace = request.match_info["ns"]
        wanted = ("--selector", request.query.get("labelSelector", ""))
        listed = ("get", "pods", "--namespace", namespace, *wanted, "-o", "json")
        shown = await asyncio.to_thread(self._cluster.kubectl, *listed)
        return [each for each in json.loads(shown)["items"] if each["status"].get("podIP")]

    async def _custom(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.asked.add(name)
        items = []
        for pod in await self._pods(request):
            about = {"kind": "Pod", "apiVersion": "/v1", "name": pod["metadata"]["name"]}
            with contextlib.suppress(OSError, ValueError):  # one that starts or ends says nothing
                value = await self._read(pod["status"]["podIP"], name)
                items.append(
                    {
                        "describedObject": about | {"namespace": request.match_info["ns"]},
                        "metric": {"name": name}, "timestamp": _now(), "value": str(round(value)),
                    }
                )  # fmt: skip
        return _listed("MetricValueList", CUSTOM, items)

    async def _read(self, address: str, name: str) -> float:
        of, url = self._certificate, f"https://{address}:{self._port}/metrics"
        files = [of / "ca.pem", of / "viewer.pem", of / "viewer.key"]
        command = self._cluster.inside(sys.executable, "-c", _READ, url, name, *files)
        reading = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, _ = await reading.communicate()
        return float(said)

    async def _resource(self, request: web.Request) -> web.Response:
        self.asked.add("cpu")
        raw = ("get", "--raw", f"/api/v1/nodes/{NODE}/proxy/stats/summary")
        summary = json.loads(await asyncio.to_thread(self._cluster.kubectl, *raw))
        known = {each["podRef"]["uid"]: each for each in summary["pods"]}
        items = []
        for pod in await self._pods(request):
            containers = known.get(pod["metadata"]["uid"], {}).get("containers", [])
            usage = [
                {
                    "name": each["name"],
                    "usage": {
                        "cpu": f"{each['cpu'].get('usageNanoCores', 0)}n",
                        "memory": str(each["memory"].get("workingSetBytes", 0)),
                    },
                }
                for each in containers
            ]
            if usage:
                metadata = {name: pod["metadata"][name] for name in ("name", "namespace")}
                items.append(
                    {
                        "metadata": metadata, "timestamp": _now(), "window": f"{WINDOW_S}s",
                        "containers": usage,
                    }
                )  # fmt: skip
        return _listed("PodMetricsList", RESOURCE, items)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _listed(kind: str, api: str, items: list[dict[str, Any]]) -> web.Response:
    return web.json_response({"kind": kind, "apiVersion": api, "metadata": {}, "items": items})


def _resources(api: str, name: str, kind: str) -> Callable[[web.Request], Any]:
    async def answer(_: web.Request) -> web.Response:
        one = {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]}
        listed = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api}
        return web.json_response(listed | {"resources": [one]})

    return answer


def _objects(namespace: str, host: str, port: int) -> list[dict[str, Any]]:
    """A Service that leads to this process, and the APIs that lead to it; and who may ask."""
    meta = {"name": "metrics", "namespace": namespace}
    ports = [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]
    labels = {"kubernetes.io/service-name": "metrics"}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": ports}},
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": meta | {"labels": labels}, "addressType": "IPv4",
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
        },
    ]  # fmt: skip
    for api in (CUSTOM, RESOURCE):
        group, version = api.split("/")
        made.append(
            {
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": f"{version}.{group}"},
                "spec": {
                    "group": group, "version": version, "service": meta | {"port": 443},
                    "insecureSkipTLSVerify": True,
                    "groupPriorityMinimum": 100, "versionPriority": 100,
                },
            }
        )  # fmt: skip
    role = {"apiGroups": [api.partition("/")[0] for api in (CUSTOM, RESOURCE)], "resources": ["*"]}
    account = {"kind": "ServiceAccount", "name": "horizontal-pod-autoscaler"}
    made += [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "metrics-reader"}, "rules": [role | {"verbs": ["*"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "metrics-reader"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                "name": "metrics-reader",
            },
            "subjects": [account | {"namespace": "kube-system"}],
        },
    ]  # fmt: skip
    return made
