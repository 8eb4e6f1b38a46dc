"""The Kubernetes target against an API server with an operator in it, both of this process. With
real ones: tests/kubernetes/test_idc_in_a_pod.py."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from aiohttp import web

from imcore import pki
from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imctl import startup
from imctl.api.kinds import API_VERSION
from imctl.api.model import IdcSpec, WitnessSpec
from imctl.commands.deploy import Start
from imctl.commands.destroy import destroy
from imctl.drill import preflight
from imctl.errors import Denied, Failed, Guarded
from imctl.planning import fields_of, plan_of
from imctl.reconcile.decide import judge_region
from imctl.reconcile.objects import DOWN_UNTIL, REGION_FILE, TEMPLATE, objects
from imctl.reconcile.observed import Owner
from imctl.rollout.ground import LocalGround
from imctl.rollout.record import Kind, Rollout
from imctl.target import breaking, corepods, kubernetes, runfile, sitefiles, sites
from imctl.target.found import MANAGER
from imctl.target.kubernetes import Kubernetes
from imctl.target.local import COPY, Local
from imctl.target.opening import opened
from imctl.target.runfile import RunFile
from imctl.traffic import Control
from services.control.evidence import Evidence
from services.policy.document import Policy, initial

REGION = Path(__file__).parents[2] / "regions" / "two-idc.yaml"
PARTS = {"witness": "im-lon", "fra": "im-fra", "dub": "im-dub"}
API = f"/apis/{API_VERSION}"
FIGURES = {"process_mib": 86.0, "im_mib": 1024.0, "connection_kib": 26.5}
GATEWAYS = 2
GRACE = {"terminationGracePeriodSeconds": 0}
RUNS = {"containerStatuses": [{"name": "gateway", "state": {"running": {}}}]}
STAND_BESIDE = (
    ("gatewayclusters", "gateway", "statefulsets"), ("routeclusters", "route", "deployments"),
    ("imclusters", "im", "statefulsets"),
)  # fmt: skip
LISTED = (*(plural for plural, _, _ in STAND_BESIDE), "pods")
FAR = {
    "log": {"kafka": {"brokers": ["kafka:9092"]}},
    "kv": {"tikv": {"pd": ["pd:2379"]}},
    "registry": {"etcd": {"endpoints": ["etcd:2379"]}},
}
NOW, UNTIL, LATER = "2999-01-01T00:00:00Z", "2999-01-01T00:05:00Z", "2999-01-01T00:06:00Z"
Object = dict[str, Any]


class Server:
    """Objects by path; a namespace that is not there takes none. An IDC object gets its pod at
    once, and a pod that is deleted its next one, with its namespace's Region."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.namespaces = set(PARTS.values())
        self.url = ""
        self.refuses = ""  # objects in which this stands
        self.forbids = ""  # reading what has this in its path
        self.says: dict[str, Object] = {}  # in statuses, by the plural of their kind
        self.pods_made = 0
        self.pods_run = True
        self.executed: list[tuple[str, list[str]]] = []
        self.gateways_ready = GATEWAYS
        self.gateways_stay = False  # as of a GatewayCluster that is paused
        self.gateways_end = True  # at once; else they still have clients
        self.pods_end = "Succeeded"  # those that somebody makes
        self.pods_end_of = ""
        self.shows_logs = True
        self.ran: list[Object] = []
        self.lingers_s = 0.0  # what is left of a pod that somebody made, once it is deleted
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
            return self._apply(path, yaml.safe_load(await request.text()), request)
        if path.endswith("/exec"):
            shell = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
            await shell.prepare(request)
            self.executed.append((path.split("/")[-2], request.query.getall("command")))
            await shell.close()
            return shell
        if self.forbids and self.forbids in path and request.method == "GET":
            return web.json_response({"message": f"you may not get {path}"}, status=403)
        if path.endswith("/log") and not self.shows_logs:
            return web.json_response({"message": "you may not get pods/log"}, status=403)
        if path.endswith("/log"):
            return web.Response(text="2026 fra serves as fra.1\n")
        found = self.objects.get(path)
        if found is None and request.method == "GET" and path.split("/")[-1] in LISTED:
            items = [each for at, each in self.objects.items() if at.startswith(f"{path}/")]
            return web.json_response({"items": self._selected(items, request)})
        if found is None:
            return web.json_response({"message": "not found"}, status=404)
        if request.method == "DELETE" and self.lingers_s and found in self.ran:
            if "deletionTimestamp" not in found["metadata"]:
                found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
                self._loop.call_later(self.lingers_s, self.objects.pop, path)
        elif request.method == "DELETE":
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

    def _apply(self, path: str, body: Object, request: web.Request) -> web.Response:
        """By `imctl`, whose fields are all that there are, or by somebody with other ones."""
        old = self.objects.get(path, {})
        if self.refuses and self.refuses in json.dumps(body):
            return web.json_response({"message": f"{self.refuses} is refused"}, status=422)
        if old and request.query["fieldManager"] != MANAGER:
            metadata = old["metadata"] | body["metadata"]
            body = old | {"metadata": metadata, "spec": old["spec"] | body.get("spec", {})}
        else:
            grown = old.get("spec") != body.get("spec")
            who = [{"manager": request.query["fieldManager"]}]
            generation = old.get("metadata", {}).get("generation", 0) + grown
            body["metadata"] |= {"uid": path, "generation": generation, "managedFields": who}
        if body["kind"] == "Pod":
            body["status"] = {"phase": self.pods_end, "reason": self.pods_end_of}
            self.ran.append(body)
        if "dryRun" not in request.query:
            self.objects[path] = body
            self._operate(path.partition("/namespaces/")[2].partition("/")[0])
        return web.json_response(body)

    def _operate(self, namespace: str) -> None:
        """What an operator and the controllers of a cluster would, at once."""
        for kind, component in (("idcs", "idc"), ("witnesses", "witness")):
            for part in PARTS:
                own = self.objects.get(f"{API}/namespaces/{namespace}/{kind}/{part}")
                workload = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/{part}-{component}"
                pod = f"/api/v1/namespaces/{namespace}/pods/{part}-{component}-0"
                if own is None:
                    self.objects.pop(workload, None)
                    self.objects.pop(pod, None)
                    continue
                region = self._region(namespace)
                owner = Owner(own["kind"], namespace, part, "u", 1)
                model = IdcSpec if kind == "idcs" else WitnessSpec
                made = objects(owner, model.model_validate(own["spec"]), region, FIGURES)[-1]
                template = made["spec"]["template"]
                template = template | {"metadata": template["metadata"] | {"name": pod[-9:]}}
                marks = own["metadata"].get("annotations", {})
                replicas = 0 if DOWN_UNTIL in marks else 1
                self.objects[workload] = {"spec": {"template": template, "replicas": replicas}}
                own["status"] = self._status(own)
                if replicas:
                    self.objects.setdefault(pod, template)
        for each in STAND_BESIDE:
            self._operate_beside(namespace, *each)

    def _operate_beside(self, namespace: str, plural: str, component: str, made: str) -> None:
        """Of an IDC that is kept down none is wanted; the kubelet has not ended them yet."""
        at, pods = f"{API}/namespaces/{namespace}", f"/api/v1/namespaces/{namespace}/pods/"
        every = {path: each for path, each in self.objects.items() if path.startswith(at)}
        clusters = [each for path, each in every.items() if f"/{plural}/" in path]
        workloads = f"/apis/apps/v1/namespaces/{namespace}/{made}/"
        for path in [path for path in self.objects if path.startswith(workloads)]:
            if path.endswith(f"-{component}"):
                del self.objects[path]
        wanted: set[str] = set()
        for own in clusters:
            metadata, spec = own["metadata"], own["spec"]
            idc = every.get(f"{at}/idcs/{spec['idc']}")
            if idc is None:
                continue
            marked = DOWN_UNTIL in idc["metadata"].get("annotations", {})
            down = marked and not self.gateways_stay
            base = f"{metadata['name']}-{component}"
            names = [f"{base}-{1 + each}" for each in range(spec.get("replicas", 2))]
            wanted |= set(names)
            workload = self._workload(namespace, [] if down else names, spec.get("image", ""))
            self.objects[f"{workloads}{base}"] = workload
            own["status"] = self._status(own) | self.says.get(plural, {})
            own["status"]["idc_generation"] = idc["metadata"]["generation"]
            notes = workload["spec"]["template"]["metadata"]["annotations"]
            for name in [] if down else names:
                labels = {"app.kubernetes.io/name": "imctl"} | {
                    f"app.kubernetes.io/{key}": value
                    for key, value in (("component", component), ("instance", metadata["name"]))
                }
                self.pods_made += f"{pods}{name}" not in self.objects
                about: Object = {"name": name, "namespace": namespace, "uid": str(self.pods_made)}
                about |= {"labels": labels, "annotations": notes}
                pod = {"metadata": about, "spec": GRACE, "status": RUNS if self.pods_run else {}}
                self.objects.setdefault(f"{pods}{name}", pod)
        for path in [path for path in self.objects if path.startswith(pods)]:
            unwanted = f"-{component}-" in path and path.removeprefix(pods) not in wanted
            if unwanted and self.gateways_end:
                del self.objects[path]

    def _workload(self, namespace: str, names: list[str], image: str) -> Object:
        """The StatefulSet or Deployment of what stands beside an IDC."""
        mark = sites.mark_of(self._region(namespace))
        notes = {REGION_FILE: mark, TEMPLATE: f"{mark} {image}"}
        return {
            "metadata": {"generation": 1},
            "spec": {"replicas": len(names), "template": {"metadata": {"annotations": notes}}},
            "status": {
                "observedGeneration": 1,
                "readyReplicas": min(len(names), self.gateways_ready),
            },
        }

    def _region(self, namespace: str) -> Region:
        path = f"{API}/namespaces/{namespace}/regions/two-idc"
        region, _ = judge_region("two-idc", self.objects[path]["spec"])
        assert region is not None
        return region

    def _status(self, own: Object) -> Object:
        return {"observed_generation": own["metadata"].get("generation", 1), "phase": "Serving"}

    def paths(self) -> set[str]:
        return {path.rpartition("/namespaces/")[2] for path in self.objects}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # One of its own: to load all of the machine's for each call would take most of a test's time.
    pki.init(tmp_path / "server-pki", {}, pki.utc_now(SystemClock().wall_ms()))
    ca = {"certificate-authority": str(tmp_path / "server-pki" / "ca.pem")}
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
                {"name": "here", "cluster": {"server": found.url, **ca}},
                {"name": "gone", "cluster": {"server": "http://127.0.0.1:1", **ca}},
            ],
            "users": [{"name": "me", "user": {}}],
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield found


def placed(folder: Path, image: str = "imctl:1", **more: Object) -> Path:
    """A sites file. ``more``: of a part's site."""
    places = {part: {"namespace": name} | more.get(part, {}) for part, name in PARTS.items()}
    path = folder / "sites.yaml"
    path.write_text(yaml.safe_dump({"sites": places, "spec": {"image": image}}))
    return path


def prepared(folder: Path, region: Path = REGION, **more: Any) -> Kubernetes:
    path = placed(folder, **more)
    return Kubernetes.prepare_on(region, folder / "deployment", path, SystemClock())


def changed(folder: Path, gateways: int = 1) -> Path:
    """``gateways``: of fra."""
    document = yaml.safe_load(REGION.read_text())
    document["spec"]["client"] = {"grace_ms": 9_000}
    document["spec"]["idcs"][0]["gateways"] = gateways
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
    given = [target.region_of(part) for part in ("fra", "dub")]
    assert given == [name.partition(".")[0] for name in (wanted, before)]
    target.adopt(wanted)
    assert target.own_region() == wanted

    assert target.stop() == []
    assert {path.split("/")[1] for path in server.paths()} == {"secrets", "regions"}


def test_a_drill_takes_an_idc_down_that_allows_it_and_lets_it_up(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path, fra={"spec": {"drills_from": ["im-fra"]}})
    target.start(["fra", "dub", "witness"])
    assert not target.faults  # dub takes none
    for part, why in (("dub", "the IDC dub takes no drills"), ("witness", "drills break IDCs")):
        with pytest.raises(Guarded, match=why):
            target.take_down(part, UNTIL)
    target.take_down("fra", UNTIL)
    # Once more when no pod is wanted: a kubelet starts what was killed again meanwhile.
    assert server.executed == [("fra-idc-0", ["sh", "-c", "kill -9 -1"])] * 2
    assert target.is_kept_down("fra", NOW) and states(target)["fra"] == "gone"
    assert not target.is_kept_down("fra", LATER)  # nor does the operator keep it down any more
    target.let_up("fra")
    assert not target.is_kept_down("fra", NOW) and states(target)["fra"] == "running"


def test_the_data_of_an_idc_are_deleted_while_it_is_down_and_only_then(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path, fra={"spec": {"drills_from": ["im-fra"]}})
    target.start(["fra", "dub", "witness"])
    with pytest.raises(Failed, match="fra is not kept down: its data are in use"):
        target.delete_data("fra", NOW)
    target.take_down("fra", UNTIL)
    with pytest.raises(Failed, match="fra is not kept down: its data are in use"):
        target.delete_data("fra", LATER)
    target.delete_data("fra", NOW)
    (made,) = server.ran
    assert made["metadata"]["name"] == "fra-idc-blank"
    (volume,) = made["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == "data-fra-idc-0"
    (container,) = made["spec"]["containers"]
    assert container["image"] == "imctl:1" and "/var/lib/imctl" in container["command"][-1]
    assert not any("blank" in path for path in server.objects)
    server.pods_end = "Failed"
    with pytest.raises(Failed, match="fra-idc-blank has not done its work"):
        target.delete_data("fra", NOW)
    assert not any("blank" in path for path in server.objects)


def test_who_may_read_no_logs_is_told_the_cause_all_the_same(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path, fra={"spec": {"drills_from": ["im-fra"]}})
    target.start(["fra", "dub", "witness"])
    target.take_down("fra", UNTIL)
    server.pods_end, server.pods_end_of = "Failed", "DeadlineExceeded"
    with pytest.raises(Failed, match=r"has not done its work: 2026 fra serves as fra.1$"):
        target.delete_data("fra", NOW)
    server.shows_logs = False
    with pytest.raises(Failed, match=r"has not done its work: Failed: DeadlineExceeded$"):
        target.delete_data("fra", NOW)
    assert target.last_words("dub").startswith("it said nothing (no log of it: ")
    target.starts_s = 0.3
    with pytest.raises(Failed, match=r"dub did not serve within .*; no log of dub: .*may not get"):
        asyncio.run(startup.wait_serving(target, ["dub"], lambda name, serving: None))


def test_an_idc_is_let_up_only_once_nothing_deletes_its_data_any_more(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepared(tmp_path, fra={"spec": {"drills_from": ["im-fra"]}})
    target.start(["fra", "dub", "witness"])
    target.take_down("fra", UNTIL)
    server.lingers_s = 60.0
    target.delete_data("fra", NOW)
    monkeypatch.setattr(breaking, "GONE_S", 0.3)
    with pytest.raises(Failed, match="the pod fra-idc-blank does not end"):
        target.let_up("fra")
    with pytest.raises(Failed, match="the pod fra-idc-blank does not end"):
        target.delete_data("fra", NOW)
    assert target.is_kept_down("fra", NOW)
    (left,) = (path for path in server.objects if "blank" in path)
    del server.objects[left]
    target.let_up("fra")
    assert not target.is_kept_down("fra", NOW)


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
    target.take_down("fra", UNTIL)
    killed = {pod for pod, command in server.executed if command == ["sh", "-c", "kill -9 -1"]}
    assert killed == {"fra-idc-0", *both}
    assert gateway_pods(server) == []
    server.gateways_ready = 1
    target.let_up("fra")
    assert gateway_pods(server) == both
    assert not target.gateways_serve("fra") and target.gateways_serve("dub")
    assert asyncio.run(preflight.look(target, [])).late == ["fra"]
    (workload,) = (at for at in server.objects if at.endswith("statefulsets/edge-gateway"))
    server.objects[workload]["status"]["readyReplicas"] = 2
    assert target.gateways_serve("fra")


def test_route_instances_go_down_with_their_idc_and_come_back(
    server: Server, tmp_path: Path
) -> None:
    spec = {"drills_from": ["im-fra"]}
    target = prepared(tmp_path, fra={"spec": spec, "gateways": {}, "routes": {}})
    target.start(["fra", "dub", "witness"])

    def pods() -> list[str]:
        found = (path.rpartition("/")[2] for path in server.objects if "/pods/fra-" in path)
        return sorted(found)

    every = ["fra-gateway-1", "fra-idc-0", "fra-route-1", "fra-route-2"]
    assert pods() == every
    target.take_down("fra", UNTIL)
    killed = {pod for pod, command in server.executed if command == ["sh", "-c", "kill -9 -1"]}
    assert killed == set(every) and pods() == []
    server.gateways_ready = 1
    target.let_up("fra")
    assert pods() == every
    assert not target.gateways_serve("fra"), "one of two route instances"
    (workload,) = (at for at in server.objects if at.endswith("deployments/fra-route"))
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
    server.gateways_stay = True
    with pytest.raises(Failed, match="no operator takes edge-gateway of fra down"):
        target.take_down("fra", UNTIL)


def test_a_namespace_that_is_not_there_refuses_all_of_it(server: Server, tmp_path: Path) -> None:
    server.namespaces.discard("im-dub")
    with pytest.raises(Guarded, match="dub: Secret dub-certificate: there is no namespace im-dub"):
        prepared(tmp_path)
    assert server.paths() == set()
    assert not (tmp_path / "deployment" / runfile.SITES).exists()
    assert not (tmp_path / "deployment" / COPY).exists()


class Killed(BaseException):
    """`kill -9` of imctl."""


def test_a_first_start_that_is_killed_before_it_makes_anything_leaves_no_deployment(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(RunFile, "write", killed)
        prepared(tmp_path)
    folder = tmp_path / "deployment"
    assert not (folder / runfile.SITES).exists() and runfile.read(folder) is None
    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(sitefiles, "adopt", killed)
        prepared(tmp_path)
    # It was about to be made: by its own file it can be started and taken down.
    assert states(opened_again(tmp_path)) == dict.fromkeys(PARTS, "gone")
    prepared(tmp_path).start(["fra"])


def test_a_start_that_is_refused_leaves_the_files_of_the_deployment_as_they_were(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    target.stop()
    files = [target.data / name for name in (COPY, runfile.SITES)]
    before = [path.read_bytes() for path in files]
    server.refuses = "imctl:2"
    with pytest.raises(Guarded, match="imctl:2 is refused"):
        prepared(tmp_path, changed(tmp_path), image="imctl:2")
    assert [path.read_bytes() for path in files] == before
    server.refuses = ""
    again = prepared(tmp_path, changed(tmp_path), image="imctl:2")
    assert [path.read_bytes() for path in files] != before
    again.start(["fra"])
    (idc,) = (each for path, each in server.objects.items() if path.endswith("/idcs/fra"))
    assert idc["spec"]["image"] == "imctl:2"


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


# ------------------------------------------------------------------- gateways, another sites file


def gateways_of(server: Server) -> Object:
    found: Object = server.objects[f"{API}/namespaces/im-fra/gatewayclusters/fra"]
    return found


def test_gateways_of_their_own_start_are_seen_waited_for_and_end(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path, changed(tmp_path, 4), fra={"gateways": {"replicas": 2}})
    condition = {"message": "0 of 2 serve", "status": "False"}
    server.says["gatewayclusters"] = {"phase": "Starting", "conditions": [condition]}
    target.start(["fra", "dub", "witness"])
    fronts = ["fra.gateway-1", "fra.gateway-2"]
    assert target.apart_names() == fronts == target.fronts_of("fra")
    assert states(target) == dict.fromkeys([*PARTS, *fronts], "running")
    rolling = target.rolling("fra")
    assert rolling is not None and rolling.why == "0 of 2 serve"
    assert target.rolling("dub") is None and target.rolling("witness") is None
    server.says.clear()
    server._operate("im-fra")
    assert target.rolling("fra") is None
    assert gateways_of(server)["spec"] == {"idc": "fra", "replicas": 2, "image": "imctl:1"}
    assert "serves as fra.1" in target.log_file("fra.gateway-2").read_text()
    with pytest.raises(Failed, match="im-fra/fra-gateway-1 was not told to restart"):
        target.restart_front("fra", 1)  # no pod is run here
    with pytest.raises(Failed, match="dub runs all its roles in one process"):
        target.restart_front("dub", 1)
    target.stop()
    assert {path.split("/")[1] for path in server.paths()} == {"secrets", "regions"}


def test_route_instances_start_are_waited_for_change_and_go_without_a_restart(
    server: Server, tmp_path: Path
) -> None:
    region, both = changed(tmp_path, 4), {"gateways": {"replicas": 2}, "routes": {"replicas": 2}}
    target = prepared(tmp_path, region, fra=both)
    condition = {"message": "1 of 2 serve", "status": "False"}
    server.says["routeclusters"] = {"phase": "Starting", "conditions": [condition]}
    target.start(["fra", "dub", "witness"])
    rolling = target.rolling("fra")
    assert rolling is not None and rolling.why == "1 of 2 serve"
    server.says.clear()
    server._operate("im-fra")
    assert target.rolling("fra") is None
    path = f"{API}/namespaces/im-fra/routeclusters/fra"
    assert server.objects[path]["spec"] == {"idc": "fra", "image": "imctl:1", "replicas": 2}

    more = {**both, "routes": {"replicas": 3}}
    wanted = kept(target, tmp_path, region, fra=more)
    assert takes(target, wanted) == {"sites.fra.routes.replicas": "in place"}
    target.apply("fra", wanted)
    assert server.objects[path]["spec"]["replicas"] == 3
    none = kept(target, tmp_path, region, fra={"gateways": {"replicas": 2}})
    assert takes(target, none) == {"sites.fra.routes": "in place"}
    target.apply("fra", none)
    assert path not in server.objects and gateways_of(server)["spec"]["replicas"] == 2
    target.apply("fra", wanted)
    opened_again(tmp_path).stop()
    assert {path.split("/")[1] for path in server.paths()} == {"secrets", "regions"}


def reached(folder: Path) -> Path:
    """A region file with engines of fra that its other cores reach."""
    document = yaml.safe_load(REGION.read_text())
    document["spec"]["idcs"][0]["engines"] = FAR
    (folder / "far.yaml").write_text(yaml.safe_dump(document))
    return folder / "far.yaml"


def test_cores_that_stand_by_come_after_their_idc_and_get_new_settings_before_it(
    server: Server, tmp_path: Path
) -> None:
    region, fra = reached(tmp_path), {"gateways": {}, "cores": {"replicas": 2}}
    target = prepared(tmp_path, region, fra={"gateways": {}})
    target.start(["fra", "dub", "witness"])
    wanted = kept(target, tmp_path, region, fra=fra)
    assert takes(target, wanted) == {
        "sites.fra.spec.cores": "restart", "sites.fra.cores": "in place",
    }  # fmt: skip
    target.restart("fra", wanted)
    own = f"{API}/namespaces/im-fra/imclusters/fra"
    assert own not in server.objects and target._idc_object("fra")["spec"]["cores"] == "shared"
    target.apply("fra", wanted)
    assert server.objects[own]["spec"] == {"idc": "fra", "replicas": 2}
    target.adopt(wanted)
    assert takes(target, wanted) == {}

    def uids() -> list[str]:
        pods = [at for at in sorted(server.objects) if "/pods/fra-im-" in at]
        return [server.objects[at]["metadata"]["uid"] for at in pods]

    before = uids()
    target.apply("fra", wanted)
    assert uids() == before, "nothing has changed"
    newer = {**fra, "cores": {"replicas": 2, "image": "imctl:2"}}
    again = kept(target, tmp_path, region, fra=newer)
    assert takes(target, again) == {"sites.fra.cores.image": "in place"}
    target.apply("fra", again)
    assert len(uids()) == 2 and not set(uids()) & set(before)

    none = kept(target, tmp_path, region, fra={"gateways": {}})
    assert takes(target, none) == dict.fromkeys(
        ("sites.fra.spec.cores", "sites.fra.cores"), "restart"
    )
    target.restart("fra", none)
    assert own not in server.objects and uids() == []


def test_cores_that_the_operator_does_not_take_up_are_told_of(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corepods, "TAKES_UP_S", 0.2)
    region = reached(tmp_path)
    fra: Object = {"gateways": {}, "cores": {}}
    target = prepared(tmp_path, region, fra=fra)
    target.start(["fra", "dub", "witness"])
    wanted = kept(target, tmp_path, region, fra=fra)
    server.says["imclusters"] = {"observed_generation": 0}
    with pytest.raises(Failed, match="the operator has not taken up IMCluster fra"):
        target.apply("fra", wanted)
    server.says["imclusters"] = {"phase": "Blocked"}
    target.apply("fra", wanted)
    server.says.clear()
    server.pods_run = False
    monkeypatch.setattr(corepods, "POD_S", 0.2)
    newer = {"gateways": {}, "cores": {"image": "imctl:2"}}
    with pytest.raises(Failed, match="fra-im-1 does not run again"):
        target.apply("fra", kept(target, tmp_path, region, fra=newer))


def test_cores_that_stand_by_go_down_with_their_idc_and_need_not_be_ready(
    server: Server, tmp_path: Path
) -> None:
    fra = {"gateways": {}, "cores": {"replicas": 2}, "spec": {"drills_from": ["im-fra"]}}
    target = prepared(tmp_path, reached(tmp_path), fra=fra)
    target.start(["fra", "dub", "witness"])
    target.take_down("fra", UNTIL)
    assert not [at for at in server.objects if "/pods/fra-im-" in at]
    assert {"fra-im-1", "fra-im-2"} <= {pod for pod, _ in server.executed}
    target.let_up("fra")
    assert target.gateways_serve("fra")
    (workload,) = (at for at in server.objects if at.endswith("statefulsets/fra-im"))
    server.objects[workload]["status"]["readyReplicas"] = 0
    assert target.gateways_serve("fra")
    server.objects["/api/v1/namespaces/im-fra/pods/fra-im-2"]["status"] = {}
    assert not target.gateways_serve("fra")


def kept(target: Kubernetes, folder: Path, region: Path = REGION, **sites: Any) -> str:
    """The name of what is wanted."""
    return target.keep_wanted(region, placed(folder, **sites))


def takes(target: Kubernetes, wanted: str) -> dict[str, str]:
    return {each.difference.field: str(each.takes) for each in fields_of(target, wanted).changes}


def test_another_image_comes_by_a_restart_and_gateways_after_it(
    server: Server, tmp_path: Path
) -> None:
    region = changed(tmp_path, 4)
    fra = {"gateways": {"replicas": 2}}
    target = prepared(tmp_path, region, fra=fra)
    target.start(["witness", "fra", "dub"])
    before = target.own_region()
    assert takes(target, kept(target, tmp_path, region, fra=fra)) == {}
    wanted = kept(target, tmp_path, region, image="imctl:2", fra=fra)
    assert takes(target, wanted) == {
        **{f"sites.{part}.spec.image": "restart" for part in PARTS},
        "sites.fra.gateways.image": "in place",
    }
    assert target.objections(wanted, target.names()) == []

    pod = server.objects["/api/v1/namespaces/im-fra/pods/fra-idc-0"]
    target.restart("fra", wanted)
    assert server.objects["/api/v1/namespaces/im-fra/pods/fra-idc-0"] is not pod
    assert gateways_of(server)["spec"]["image"] == "imctl:1", "they follow their IDC"
    left = {f"sites.{part}.spec.image" for part in ("dub", "witness")}
    assert takes(target, wanted).keys() == left | {"sites.fra.gateways.image"}
    target.apply("fra", wanted)
    assert gateways_of(server)["spec"]["image"] == "imctl:2"
    assert takes(target, wanted).keys() == left
    # Known by what runs, not by what was noted: so it is for whoever opens it after a kill.
    assert takes(opened_again(tmp_path), wanted).keys() == left
    assert takes(target, before).keys() == {
        "sites.fra.spec.image", "sites.fra.gateways.image",
    }  # fmt: skip

    target.adopt(wanted)
    assert opened_again(tmp_path).own_region() == wanted
    assert "imctl:2" in (tmp_path / "deployment" / runfile.SITES).read_text()


def opened_again(folder: Path) -> Kubernetes:
    found = opened(folder / "deployment")
    assert isinstance(found, Kubernetes)
    return found


def test_gateways_that_are_not_wanted_any_more_are_gone_before_their_idc_has_its_own(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path, fra={"gateways": {}})
    target.start(["witness", "fra", "dub"])
    wanted = kept(target, tmp_path)
    found = takes(target, wanted)
    assert found == dict.fromkeys(("sites.fra.spec.gateways", "sites.fra.gateways"), "restart")
    target.restart("fra", wanted)
    assert "im-fra/gatewayclusters/fra" not in server.paths()
    assert takes(target, wanted) == {}
    target.adopt(wanted)
    assert target.apart_names() == []


def test_gateways_that_have_to_go_are_waited_for_by_whoever_tries_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = prepared(tmp_path, fra={"gateways": {}})
    target.start(["witness", "fra", "dub"])
    wanted = kept(target, tmp_path)
    server.gateways_end = False
    for _ in range(2):  # at the second time their GatewayCluster is gone already
        with (
            monkeypatch.context() as patched,
            pytest.raises(Failed, match="the gateways of fra do not end"),
        ):
            patched.setattr(kubernetes, "POD_S", 0.2)
            target.restart("fra", wanted)
        assert target._idc_object("fra")["spec"]["gateways"] == "apart", "it does not listen yet"
    server.gateways_end = True
    server._operate("im-fra")
    target.restart("fra", wanted)
    assert "gateways" not in target._idc_object("fra")["spec"]


def test_somebody_elses_gateways_are_not_waited_for(server: Server, tmp_path: Path) -> None:
    target = prepared(tmp_path)
    theirs = f"{API}/namespaces/im-fra/gatewayclusters/fra"
    metadata = {"name": "fra", "namespace": "im-fra"}
    server.objects[theirs] = {"metadata": metadata, "spec": {"idc": "fra", "replicas": 1}}
    target.start(["witness", "fra", "dub"])
    target.restart("fra", target.own_region())
    assert states(target)["fra"] == "running"


def test_gateways_of_a_deploy_that_is_not_finished_go_with_the_deployment(
    server: Server, tmp_path: Path
) -> None:
    region = changed(tmp_path, 4)
    target = prepared(tmp_path, region)
    target.start(["witness", "fra", "dub"])
    wanted = kept(target, tmp_path, region, fra={"gateways": {"replicas": 2}})
    target.restart("fra", wanted)
    target.apply("fra", wanted)
    assert "im-fra/gatewayclusters/fra" in server.paths()
    theirs = f"{API}/namespaces/im-dub/gatewayclusters/dub"
    metadata = {"name": "dub", "namespace": "im-dub"}
    server.objects[theirs] = {"metadata": metadata, "spec": {"idc": "dub", "replicas": 1}}
    opened_again(tmp_path).stop()
    left = {path for path in server.paths() if path.split("/")[1] not in ("secrets", "regions")}
    assert left == {"im-dub/gatewayclusters/dub"}, "somebody else's"


def test_a_pod_that_waits_to_be_replaced_is_replaced_by_a_deploy(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    notes = server.objects["/api/v1/namespaces/im-dub/pods/dub-idc-0"]["metadata"]["annotations"]
    server.objects["/api/v1/namespaces/im-dub/pods/dub-idc-0"] = {
        "metadata": {"name": "dub-idc-0", "annotations": notes | {"imctl.dev/template": "older"}},
        "spec": GRACE,
    }
    own = target.own_region()
    assert takes(target, own) == {"sites.dub.pod": "restart"}
    target.restart("dub", own)
    assert takes(target, own) == {}


def test_what_no_deploy_can_do_is_said(server: Server, tmp_path: Path) -> None:
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    moved = kept(target, tmp_path, fra={"namespace": "im-elsewhere"})
    assert takes(target, moved) == {"sites.fra.namespace": "not changeable"}
    server.refuses = "100Gi"
    stored = kept(target, tmp_path, fra={"spec": {"storage": {"size": "100Gi"}}})
    (change,) = fields_of(target, stored).fixed
    assert change.difference.field == "sites.fra.spec" and "100Gi is refused" in change.reason
    wrong = placed(tmp_path, fra={"gateways": {"replicas": 2}})
    with pytest.raises(BadInput, match="replicas: expected at most 1, the `gateways` of fra"):
        target.keep_wanted(REGION, wrong)
    text = REGION.read_text().replace("witness]", "judge]")
    document = yaml.safe_load(text)
    document["spec"]["witness"]["name"] = "judge"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(document))
    other = target.keep_wanted(tmp_path / "other.yaml")
    assert takes(target, other)["spec.witness.name"] == "not changeable"
    assert target.objections(other, ["fra"]) == []
    with pytest.raises(BadInput, match="No such file"):
        target.keep_wanted(REGION, tmp_path / "nowhere.yaml")


class Agreed:
    """Whom a look and a plan ask for the policy and the evidence."""

    idcs = ("fra", "dub")
    voters = ("fra", "dub", "witness")

    async def policy(self) -> Policy:
        return initial(load_region(REGION), 0)

    async def evidence(self) -> Evidence:
        return Evidence()


def test_the_plan_warns_of_a_lone_gateway_that_is_replaced(server: Server, tmp_path: Path) -> None:
    target = prepared(tmp_path, fra={"gateways": {}})
    target.start(["witness", "fra", "dub"])
    wanted = kept(target, tmp_path, fra={"gateways": {"node_selector": {"edge": "yes"}}})
    plan = asyncio.run(plan_of(target, cast(Control, Agreed()), wanted, "", SystemClock()))
    assert (plan.order, plan.restarted) == (("fra",), [])
    (warning,) = plan.warnings
    assert warning.startswith("fra has no other gateway")


def test_what_an_api_server_refuses_at_a_units_turn_is_not_taken_for_done(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    wanted = kept(target, tmp_path, fra={"spec": {"storage": {"size": "100Gi"}}})
    ground = LocalGround(target, cast(Control, Agreed()), SystemClock())
    begun = Rollout("d1", Kind.DEPLOY, wanted, target.own_region(), ("fra",), started_ms=0)
    assert asyncio.run(ground.look(begun))["fra"].lacks
    server.refuses = "100Gi"  # since the plan was made
    with pytest.raises(Denied, match=r"sites\.fra\.spec: .*100Gi is refused"):
        asyncio.run(ground.look(begun))
    server.refuses = ""
    server.forbids = "/statefulsets"  # for the account of who deploys
    with pytest.raises(Denied, match="you may not get"):
        asyncio.run(ground.look(begun))


def test_it_starts_there_again_after_it_was_taken_down(server: Server, tmp_path: Path) -> None:
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    target.stop()
    folder = tmp_path / "deployment"
    with pytest.raises(Failed, match="is of a deployment on Kubernetes"):
        Local.prepare(REGION, folder, False, SystemClock())
    again = Start(False, "", None).prepare(REGION, folder)
    assert isinstance(again, Kubernetes)


@pytest.mark.parametrize("site", [{"namespace": "im-dub"}, {"context": "here"}])
def test_it_starts_nowhere_else_after_it_was_taken_down(
    server: Server, tmp_path: Path, site: Object
) -> None:
    """Its volumes and registries are where it was: elsewhere they would be blank."""
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    target.stop()
    own = tmp_path / "deployment" / runfile.SITES
    before = own.read_bytes()
    field = next(iter(site))
    with pytest.raises(Guarded, match=rf"sites\.fra\.{field}: its volume .* another --data"):
        prepared(tmp_path, fra=site)
    assert own.read_bytes() == before and runfile.read(own.parent) is None


def test_a_deployment_of_an_earlier_imctl_has_its_sites_in_its_run_file(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    (tmp_path / "deployment" / runfile.SITES).unlink()
    again = opened_again(tmp_path)
    assert takes(again, again.own_region()) == {}
    assert takes(again, again.own_region().partition(".")[0]) == {}
    again.stop()
    assert (tmp_path / "deployment" / runfile.SITES).exists()


def test_its_keys_are_not_deleted_while_clusters_have_its_volumes(
    server: Server, tmp_path: Path
) -> None:
    target = prepared(tmp_path)
    target.start(["witness", "fra", "dub"])
    for _ in range(2):
        with pytest.raises(Guarded, match=r"delete the namespaces \(im-dub, im-fra, im-lon\)"):
            destroy(yes_name="two-idc", with_clients=True, data=target.data)
        if runfile.read(target.data) is not None:
            target.stop()
    assert (target.pki / "ca.pem").exists()
