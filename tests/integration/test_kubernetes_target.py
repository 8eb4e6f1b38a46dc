"""The Kubernetes target against an API server with an operator in it, both of this process. With
real ones: tests/kubernetes/test_idc_in_a_pod.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from imcore.runtime import SystemClock
from imctl.errors import Failed, Guarded
from imctl.reconcile.decide import judge_region
from imctl.reconcile.objects import DOWN_UNTIL, REGION_FILE
from imctl.target import breaking, sites
from imctl.target.kubernetes import Kubernetes
from imctl.target.opening import opened

REGION = Path(__file__).parents[2] / "regions" / "two-idc.yaml"
PARTS = {"witness": "im-lon", "fra": "im-fra", "dub": "im-dub"}
GATEWAYS = 2
RUNS = {"containerStatuses": [{"name": "gateway", "state": {"running": {}}}]}
LISTED = ("gatewayclusters", "pods")
Object = dict[str, Any]


class Server:
    """Objects by path; a namespace that is not there takes none. An IDC object gets its pod at
    once, and a pod that is deleted its next one, with its namespace's Region."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.namespaces = set(PARTS.values())
        self.url = ""
        self.executed: list[tuple[str, list[str]]] = []
        self.gateways_ready = GATEWAYS
        self.pods_end = "Succeeded"  # those that somebody makes
        self.ran: list[Object] = []
        self._loop = asyncio.new_event_loop()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._listens.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._listens.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        namespace = path.partition("/namespaces/")[2].partition("/")[0]
        if request.method == "PATCH" and namespace in self.namespaces:
            body = yaml.safe_load(await request.text())
            if "spec" not in body and path in self.objects:  # by somebody with other fields
                body = self.objects[path] | {"metadata": body["metadata"]}
            if body["kind"] == "Pod":
                body["status"] = {"phase": self.pods_end}
                self.ran.append(body)
            if "dryRun" not in request.query:
                self.objects[path] = body
                self._operate(namespace)
            return web.json_response(body)
        if path.endswith("/exec"):
            shell = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
            await shell.prepare(request)
            self.executed.append((path.split("/")[-2], request.query.getall("command")))
            await shell.close()
            return shell
        if path.endswith("/log"):
            return web.Response(text="2026 fra serves as fra.1\n")
        found = self.objects.get(path)
        if found is None and request.method == "GET" and path.split("/")[-1] in LISTED:
            items = [each for at, each in self.objects.items() if at.startswith(f"{path}/")]
            return web.json_response({"items": self._selected(items, request)})
        if found is None:
            return web.json_response({"message": "not found"}, status=404)
        if request.method == "DELETE":
            del self.objects[path]
            self._operate(namespace)
        return web.json_response(found)

    @staticmethod
    def _selected(items: list[Object], request: web.Request) -> list[Object]:
        asked = request.query.get("labelSelector", "")
        wanted = dict(each.split("=") for each in asked.split(",") if each)
        return [
            each for each in items
            if wanted.items() <= each["metadata"].get("labels", {}).items()
        ]  # fmt: skip

    def _operate(self, namespace: str) -> None:
        regions = f"/apis/imctl.dev/v1alpha1/namespaces/{namespace}/regions/two-idc"
        for kind in ("idcs", "witnesses"):
            component = {"idcs": "idc", "witnesses": "witness"}[kind]
            for part in PARTS:
                own = f"/apis/imctl.dev/v1alpha1/namespaces/{namespace}/{kind}/{part}"
                workload = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{part}-{component}"
                pod = f"/api/v1/namespaces/{namespace}/pods/{part}-{component}-0"
                if own not in self.objects:
                    self.objects.pop(workload, None)
                    self.objects.pop(pod, None)
                    continue
                region, _ = judge_region("two-idc", self.objects[regions]["spec"])
                assert region is not None
                template = {"metadata": {"annotations": {REGION_FILE: sites.mark_of(region)}}}
                marks = self.objects[own]["metadata"].get("annotations", {})
                replicas = 0 if DOWN_UNTIL in marks else 1
                self.objects[workload] = {"spec": {"template": template, "replicas": replicas}}
                if replicas:
                    self.objects.setdefault(pod, template)
                self._gateways(namespace, part, GATEWAYS if replicas else 0)

    def _gateways(self, namespace: str, part: str, replicas: int) -> None:
        """Of a GatewayCluster, if the IDC has one."""
        own = f"/apis/imctl.dev/v1alpha1/namespaces/{namespace}/gatewayclusters/edge"
        if self.objects.get(own, {}).get("spec", {}).get("idc") != part:
            return
        at = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/edge-gateway"
        metadata = {"generation": 1}
        status = {"observedGeneration": 1, "readyReplicas": min(replicas, self.gateways_ready)}
        spec = {"replicas": replicas}
        self.objects[at] = {"metadata": metadata, "spec": spec, "status": status}
        for number in range(1, replicas + 1):
            name = f"edge-gateway-{number}"
            labels = {
                "app.kubernetes.io/name": "imctl",
                "app.kubernetes.io/component": "gateway",
                "app.kubernetes.io/instance": "edge",
            }
            pod = {"metadata": {"name": name, "labels": labels}, "status": RUNS}
            self.objects.setdefault(f"/api/v1/namespaces/{namespace}/pods/{name}", pod)

    def paths(self) -> set[str]:
        return {path.rpartition("/namespaces/")[2] for path in self.objects}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as found:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [
                {"name": name, "context": {"cluster": name, "user": "me"}}
                for name in ("here", "gone")
            ],
            "clusters": [
                {"name": "here", "cluster": {"server": found.url}},
                {"name": "gone", "cluster": {"server": "http://127.0.0.1:1"}},
            ],
            "users": [{"name": "me", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield found


def prepared(folder: Path, **more: Object) -> Kubernetes:
    """``more``: of a part's site."""
    placed = {part: {"namespace": name} | more.get(part, {}) for part, name in PARTS.items()}
    path = folder / "sites.yaml"
    path.write_text(yaml.safe_dump({"sites": placed, "spec": {"image": "imctl:1"}}))
    return Kubernetes.prepare_on(REGION, folder / "deployment", path, SystemClock())


def changed(folder: Path) -> Path:
    document = yaml.safe_load(REGION.read_text())
    document["spec"]["client"] = {"grace_ms": 9_000}
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def states(target: Kubernetes) -> dict[str, str]:
    return {unit.name: unit.state for unit in target.units()}


def test_it_starts_restarts_one_with_another_file_and_ends(server: Server, tmp_path: Path) -> None:
    prepared(tmp_path)
    assert server.paths() == set(), "a dry run writes nothing"
    target = opened(tmp_path / "deployment")
    assert isinstance(target, Kubernetes)
    assert states(target) == dict.fromkeys(PARTS, "gone")
    target.start(["fra", "dub", "witness"])
    assert states(target) == dict.fromkeys(PARTS, "running")
    assert {"im-fra/secrets/fra-certificate", "im-lon/witnesses/witness"} <= server.paths()
    target.check_alive(target.names())
    assert target.log_file("fra").read_text().endswith("serves as fra.1\n")

    before, wanted = target.own_region(), target.keep_wanted(changed(tmp_path))
    assert target.objections(wanted, ["fra"]) == []
    target.restart("fra", wanted)
    target.restart("fra", wanted)
    assert [target.region_of(part) for part in ("fra", "dub")] == [wanted, before]
    target.adopt(wanted)
    assert target.own_region() == wanted

    assert target.stop() == []
    assert {path.split("/")[1] for path in server.paths()} == {"secrets", "regions"}


def test_a_drill_takes_an_idc_down_that_allows_it_and_lets_it_up(
    server: Server, tmp_path: Path
) -> None:
    allows = {"spec": {"drills_from": ["im-fra"]}}
    target = prepared(tmp_path, fra=allows)
    target.start(["fra", "dub", "witness"])
    assert not target.faults  # dub takes none
    for part, why in (("dub", "the IDC dub takes no drills"), ("witness", "drills break IDCs")):
        with pytest.raises(Guarded, match=why):
            target.take_down(part, "2026-12-01T00:00:00Z")
    target.take_down("fra", "2026-12-01T00:00:00Z")
    # Once more when no pod is wanted: a kubelet starts what was killed again meanwhile.
    assert server.executed == [("fra-idc-0", ["sh", "-c", "kill -9 -1"])] * 2
    assert target.is_kept_down("fra") and states(target)["fra"] == "gone"
    target.let_up("fra")
    assert not target.is_kept_down("fra") and states(target)["fra"] == "running"


def test_the_data_of_an_idc_are_deleted_while_it_is_down_and_only_then(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path, fra={"spec": {"drills_from": ["im-fra"]}})
    target.start(["fra", "dub", "witness"])
    with pytest.raises(Failed, match="fra is not kept down: its data are in use"):
        target.delete_data("fra")
    target.take_down("fra", "2026-12-01T00:00:00Z")
    target.delete_data("fra")
    (made,) = server.ran
    assert made["metadata"]["name"] == "fra-idc-blank"
    (volume,) = made["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == "data-fra-idc-0"
    (container,) = made["spec"]["containers"]
    assert container["image"] == "imctl:1" and "/var/lib/imctl/data" in container["command"][-1]
    assert not any("blank" in path for path in server.objects)
    server.pods_end = "Failed"
    with pytest.raises(Failed, match="fra-idc-blank has not done its work"):
        target.delete_data("fra")
    assert not any("blank" in path for path in server.objects)


def gateway_cluster(server: Server, namespace: str, idc: str) -> None:
    """A GatewayCluster `edge` of this IDC, which the operator sees with the next change."""
    path = f"/apis/imctl.dev/v1alpha1/namespaces/{namespace}/gatewayclusters/edge"
    kind = {"apiVersion": "imctl.dev/v1alpha1", "kind": "GatewayCluster"}
    metadata = {"name": "edge", "namespace": namespace, "uid": "u"}
    server.objects[path] = kind | {"metadata": metadata, "spec": {"idc": idc, "replicas": 2}}


def gateway_pods(server: Server) -> list[str]:
    return sorted(
        path.rpartition("/")[2] for path in server.objects if "/pods/edge-gateway" in path
    )


def test_gateways_in_pods_of_their_own_go_down_with_their_idc_and_come_back(
    server: Server, tmp_path: Path
) -> None:
    gateway_cluster(server, "im-fra", "fra")
    target = prepared(tmp_path, fra={"spec": {"drills_from": ["im-fra"], "gateways": "apart"}})
    target.start(["fra", "dub", "witness"])
    both = ["edge-gateway-1", "edge-gateway-2"]
    assert gateway_pods(server) == both
    target.take_down("fra", "2026-12-01T00:00:00Z")
    killed = {pod for pod, command in server.executed if command == ["sh", "-c", "kill -9 -1"]}
    assert killed == {"fra-idc-0", *both}
    assert gateway_pods(server) == []
    server.gateways_ready = 1
    target.let_up("fra")
    assert gateway_pods(server) == both
    assert not target.gateways_serve("fra") and target.gateways_serve("dub")
    (workload,) = (at for at in server.objects if at.endswith("statefulsets/edge-gateway"))
    server.objects[workload]["status"]["readyReplicas"] = 2
    assert target.gateways_serve("fra")


def test_gateways_that_the_operator_leaves_up_are_told_of(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those whose GatewayCluster is paused: an IDC that goes on serving is not lost."""
    monkeypatch.setattr(breaking, "DOWN_S", 0.3)
    gateway_cluster(server, "im-fra", "fra")
    target = prepared(tmp_path, fra={"spec": {"drills_from": ["im-fra"], "gateways": "apart"}})
    target.start(["fra", "dub", "witness"])
    gateways = server._gateways
    monkeypatch.setattr(server, "_gateways", lambda at, part, replicas: gateways(at, part, 2))
    with pytest.raises(Failed, match="no operator takes edge-gateway of fra down"):
        target.take_down("fra", "2026-12-01T00:00:00Z")


def test_a_namespace_that_is_not_there_refuses_all_of_it(server: Server, tmp_path: Path) -> None:
    server.namespaces.discard("im-dub")
    with pytest.raises(Guarded, match="dub: Secret dub-certificate: there is no namespace im-dub"):
        prepared(tmp_path)
    assert server.paths() == set()


def test_a_file_that_somebody_else_applied_is_not_taken_for_ours(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path)
    target.start(["fra"])
    (pod,) = (one for path, one in server.objects.items() if path.endswith("pods/fra-idc-0"))
    pod["metadata"]["annotations"][REGION_FILE] = "other"
    with pytest.raises(Failed, match="somebody else gave fra a region file"):
        target.region_of("fra")


def test_an_api_server_that_is_away_says_nothing_of_what_serves(
    server: Server, tmp_path: Path
) -> None:
    with pytest.raises(Guarded, match=r"fra: .*the API server is not reached"):
        prepared(tmp_path, fra={"context": "gone"})
    target = prepared(tmp_path)
    target.start(["dub"])
    target._sites.sites["fra"] = target._sites.sites["fra"].model_copy(update={"context": "gone"})
    assert states(target) == {"fra": "elsewhere", "dub": "running", "witness": "gone"}


def test_what_is_done_to_processes_is_refused(server: Server, tmp_path: Path) -> None:
    target = prepared(tmp_path)
    for refused in (target.kill, target.pause, target.resume, target.wipe, target.terminate):
        with pytest.raises(Guarded, match="its pods are a cluster's"):
            refused("fra")
    with pytest.raises(Guarded, match=r"delete the namespaces \(im-dub, im-fra, im-lon\)"):
        target.demand_destroyable()
