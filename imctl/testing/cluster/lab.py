"""A region on the test cluster, as people would run it: the operator in a pod of its own, and a
namespace for each IDC and the witness. Clients and `imctl` reach it from outside, by NodePorts.

with running(cluster, tmp_path) as pods:
    async with pods.lab() as lab, Cast(lab, tmp_path) as cast:
        await lab.kill("fra")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import yaml

from imcore.region.load import load_region
from imctl.api.kinds import IDC, KINDS, WITNESS
from imctl.errors import Failed
from imctl.reconcile.coreobjects import FIRST
from imctl.reconcile.objects import CORE_OF
from imctl.reconcile.seen import is_ready, runs
from imctl.target.local import Local
from imctl.testing.cluster import image, settings
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.engines import SECRET, Engines
from imctl.testing.lab import Edit, Lab

ROOT = Path(__file__).parents[3]
TWO_IDCS, THREE_IDCS = (ROOT / "regions" / f"{name}-idc.yaml" for name in ("two", "three"))
OPERATOR = ROOT / "charts" / "im-operator"
# Of nodes, and as well the ports of the listeners: others dial the endpoints' own.
FIRST_PORT = 30_100
ENDS = {"gateway": 0, "ipconf": 1, "peer": 2}
METRICS = 3  # the port of them, of an IDC whose cores are asked there whether they live
APART, GATEWAYS = 5, 2  # the first port of gateways in pods of their own, and how many
# All of a region on one small machine; the capacity model reckons for one that carries thousands.
RESOURCES = {"cpu": "50m", "memory": "512Mi"}
FRONT_RESOURCES = {"cpu": "50m", "memory": "256Mi"}
READY_S = 240
VIEWER = "imctl-viewer"
NO_ENGINES: Mapping[str, Engines] = MappingProxyType({})
LABEL = "pod-security.kubernetes.io/enforce=restricted"


def region_file(
    folder: Path,
    layout_of: Callable[[str], settings.Layout],
    edit: Edit | None = None,
    apart: Sequence[str] = (),
    source: Path = TWO_IDCS,
    shared: Mapping[str, Engines] = NO_ENGINES,
) -> Path:
    """A copy of ``source`` with ports of the node of each part (``layout_of``, by its name);
    ``apart``: IDCs with several gateways; ``shared``: as of ``Pods``."""
    document = yaml.safe_load(source.read_text())
    spec = document["spec"]
    for number, idc in enumerate(spec["idcs"]):
        first = FIRST_PORT + 10 * number
        ends = ENDS | ({"gateway": APART} if idc["name"] in apart else {})
        layout = layout_of(idc["name"])
        idc["endpoints"] = {
            name: f"{layout.node_address}:{first + port}" for name, port in ends.items()
        }
        idc["gateways"] = GATEWAYS if idc["name"] in apart else 1
        if idc["name"] in shared:
            idc["endpoints"]["metrics"] = f"{layout.node_address}:{first + METRICS}"
            idc["engines"] = shared[idc["name"]].spec()
    layouts = {layout_of(idc["name"]) for idc in spec["idcs"]}
    witness = load_region(source).spec.witness  # with its name, which has a default
    if witness is not None:
        node = layout_of(witness.name).node_address
        spec["witness"]["peer"] = f"{node}:{FIRST_PORT + 10 * len(spec['idcs'])}"
    # The load of a drill comes from the operator's pod, and says as well where its clients are.
    proxies = {one for each in layouts for one in (each.machine_address, each.node_address)}
    spec["geo"]["trusted_proxies"] = [*(f"{each}/32" for each in sorted(proxies)), settings.PODS]
    if edit is not None:
        edit(spec)
    path = folder / "region.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


class Pods:
    """What the operator made of a region; ``namespaces``: part -> its namespace."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        suffix: str,
        apart: Sequence[str] = (),
        elsewhere: Mapping[str, Cluster] = MappingProxyType({}),
        shared: Mapping[str, Engines] = NO_ENGINES,
    ) -> None:
        """``folder``: with its region file. ``apart``: IDCs whose gateways have pods of their
        own. ``elsewhere``: parts that are in another cluster than ``cluster``, each in its own.
        ``shared``: those of ``apart`` of which another core stands by, with their engines."""
        self.apart = apart
        self.shared = shared
        self._cluster = cluster
        self._elsewhere = elsewhere
        self._folder = folder
        self.data = folder / "deployment"
        self.region = load_region(folder / "region.yaml")
        self.idcs = [idc.name for idc in self.region.spec.idcs]
        self.witness = self.region.spec.witness.name if self.region.spec.witness else ""
        parts = [*self.idcs, *([self.witness] if self.witness else [])]
        self.namespaces = {part: f"im-{part}-{suffix}" for part in parts}
        self.system = f"im-system-{suffix}"  # the operator's

    def of(self, part: str) -> Cluster:
        """In which its namespace is."""
        return self._elsewhere.get(part, self._cluster)

    @property
    def clusters(self) -> dict[str, Cluster]:
        """By the context of ``kubeconfig`` that leads there."""
        return {str(each.layout.number): each for each in map(self.of, self.namespaces)}

    def kubeconfig(self) -> Path:
        """For all of its clusters."""
        path = self._folder / "kubeconfig"
        config: dict[str, Any] = {"apiVersion": "v1", "kind": "Config"}
        config |= {"clusters": [], "users": [], "contexts": []}
        for name, cluster in self.clusters.items():
            own = json.loads(cluster.kubeconfig.read_text())
            for kind in ("clusters", "users"):
                config[kind].append(own[kind][0] | {"name": name})
            config["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})
        path.write_text(json.dumps(config))
        return path

    def sites_file(self, resources: dict[str, str] = FRONT_RESOURCES, **images: str) -> Path:
        """``resources``: of each gateway in a pod of its own. ``images``: of parts that have
        another one."""
        path = self._folder / "sites.yaml"
        spec = {
            "image": image.NAME,
            "storage": {"size": "1Gi"},
            "resources": RESOURCES,
            "service": "NodePort",
        }
        sites: dict[str, dict[str, Any]] = {
            part: {"namespace": name, "context": str(self.of(part).layout.number)}
            for part, name in self.namespaces.items()
        }
        for idc in self.idcs:
            sites[idc]["spec"] = {"drills_from": [self.namespaces[self.idcs[0]]]}
            if idc in self.apart:
                sites[idc]["spec"] |= {"role_certificate": VIEWER, "deletion": "at_once"}
                rollout = {"min_ready_s": 1}
                sites[idc]["gateways"] = {"resources": resources, "rollout": rollout}
                sites[idc]["routes"] = {"resources": FRONT_RESOURCES, "rollout": rollout}
            if idc in self.shared:
                sites[idc]["spec"]["secrets"] = [SECRET]
                storage = spec["storage"]
                sites[idc]["cores"] = {"replicas": 1, "resources": RESOURCES, "storage": storage}
        for part, name in images.items():
            sites[part].setdefault("spec", {})["image"] = name
        path.write_text(yaml.safe_dump({"sites": sites, "spec": spec}))
        return path

    def imctl(self, *arguments: str, status: int = 0, folder: Path | None = None) -> str:
        """What the command prints, and says; it must end with this status. Raises Failed.
        ``folder``: of another deployment."""
        data = folder or self.data
        command = [sys.executable, "-m", "imctl", *arguments, "--data", str(data)]
        environment = os.environ | {"KUBECONFIG": str(self.kubeconfig())}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != status:
            raise Failed(f"imctl {arguments[0]}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def tag(self, name: str) -> str:
        """Our image under another name."""
        self._cluster.tag(image.NAME, name)
        return name

    def kind(self, part: str) -> str:
        return WITNESS.name if part == self.witness else IDC.name

    def workload(self, part: str) -> str:
        """The name of its StatefulSet."""
        return f"{part}-{self.kind(part).lower()}"

    def kubectl(self, part: str, *arguments: str) -> str:
        """In the part's namespace. Raises Failed."""
        return self.of(part).kubectl("--namespace", self.namespaces[part], *arguments)

    def apply(self, part: str, document: Any) -> None:
        """In the part's namespace. Raises Failed."""
        text = json.dumps(document)
        namespace = self.namespaces[part]
        self.of(part).kubectl("--namespace", namespace, "apply", "-f", "-", given=text)

    def wait_ready(self, *parts: str, seconds: int = READY_S) -> None:
        """Raises Failed with what the pods say."""
        for part in parts:
            pod = f"pod/{self.workload(part)}-0"
            try:
                # Of its pod first: the operator may still speak of the one before.
                for wanted in (
                    ("--for=create", pod),
                    ("--for=condition=Ready", pod),
                    ("--for=condition=Ready", f"{self.kind(part).lower()}/{part}"),
                ):
                    self.kubectl(part, "wait", *wanted, f"--timeout={seconds}s")
            except Failed as error:
                raise Failed(f"{error}\n{self.said(part)}") from error

    def role_secret(self, part: str, name: str) -> None:
        """Of the certificate of a role, ``imctl-ROLE``."""
        pki, role = self.data / "pki", name.removeprefix("imctl-")
        self.kubectl(
            part, "create", "secret", "generic", name, f"--from-file=ca.crt={pki / 'ca.pem'}",
            f"--from-file=tls.crt={pki / f'{role}.pem'}",
            f"--from-file=tls.key={pki / f'{role}.key'}",
        )  # fmt: skip

    def gateways(self, part: str) -> dict[str, Any]:
        """What their GatewayCluster says of them."""
        shown = self.kubectl(part, "get", "gatewaycluster", part, "-o", "jsonpath={.status}")
        status: dict[str, Any] = json.loads(shown)
        return status

    def wait_gateways(self, part: str, seconds: int = READY_S) -> None:
        """Until all are as they are wanted. Raises Failed with what the pods say."""
        cluster = f"gatewaycluster/{part}"
        generation = self.kubectl(part, "get", cluster, "-o", "jsonpath={.metadata.generation}")
        try:
            for path in (
                f"{{.status.observed_generation}}={generation}",
                "{.status.phase}=Serving",
            ):
                waits = ("wait", cluster, f"--for=jsonpath={path}", f"--timeout={seconds}s")
                self.kubectl(part, *waits)
        except Failed as error:
            raise Failed(f"{error}\n{self.said(part)}") from error

    def wait_cores(self, part: str, seconds: int = READY_S) -> None:
        """Until one of them serves and the others stand by. Raises Failed with what they say."""
        try:
            for wanted in (
                ("--for=jsonpath={.status.phase}=Serving", f"imcluster/{part}"),
                ("--for=condition=Ready", f"idc/{part}"),
            ):
                self.kubectl(part, "wait", *wanted, f"--timeout={seconds}s")
        except Failed as error:
            raise Failed(f"{error}\n{self.said(part)}") from error

    def cores(self, part: str) -> dict[str, bool]:
        """Those that run, by the name of their pod, and whether each serves."""
        shown = self.kubectl(part, "get", "pods", "-l", f"{CORE_OF}={part}", "-o", "json")
        pods = [each for each in json.loads(shown)["items"] if runs(each)]
        return {each["metadata"]["name"]: is_ready(each["status"]) for each in pods}

    def lose(self, part: str, pod: str) -> float:
        """As with its node: all that runs in it ends without a farewell, and no node takes the
        next one before ``uncordon``. Returns when it ended."""
        self.of(part).kubectl("cordon", settings.NODE)
        self._sigkill(part, pod)
        ended = time.monotonic()
        self._forget(part, pod)
        return ended

    def uncordon(self, part: str) -> None:
        self.of(part).kubectl("uncordon", settings.NODE)

    def said(self, part: str) -> str:
        """By its objects and its log, for whoever looks into a failure."""
        shown = []
        for asked in (
            ("get", "im,pods,services", "-o", "wide"),
            ("get", "events", "--sort-by=.lastTimestamp"),
            ("logs", f"{self.workload(part)}-0", "--tail=25"),
            *(
                ("logs", f"--selector=app.kubernetes.io/component={each}", "--tail=25", "--prefix")
                for each in ("im", "gateway")
            ),
        ):
            try:
                shown.append(self.kubectl(part, *asked))
            except Failed as error:
                shown.append(str(error))
        return "\n".join(shown)

    def pod(self, part: str) -> dict[str, Any]:
        name = f"{self.workload(part)}-0"
        found: dict[str, Any] = json.loads(self.kubectl(part, "get", "pod", name, "-o", "json"))
        return found

    def evict(self, part: str, pod: str) -> None:
        """As who drains a node asks for it. Raises Failed when the budget has no room."""
        namespace = self.namespaces[part]
        about = {"name": pod, "namespace": namespace}
        wish = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": about}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
        self.of(part).kubectl("create", "--raw", path, "-f", "-", given=json.dumps(wish))

    def delete_pod(self, part: str) -> None:
        """As an operator of the cluster would: it is told to end, and another is made. Returns
        once it is gone."""
        self.kubectl(part, "delete", "pod", f"{self.workload(part)}-0")

    def kill(self, part: str) -> None:
        """Its processes, without a farewell; the operator leaves it down until ``start``."""
        self._pause(part, True)
        self._sigkill(part, f"{self.workload(part)}-0")
        # The kubelet may have begun to start it again: that one ends before it serves.
        self.kubectl(part, "scale", "statefulset", self.workload(part), "--replicas=0")
        self._forget(part, f"{self.workload(part)}-0")

    def _sigkill(self, part: str, pod: str) -> None:
        shown = self.kubectl(part, "get", "pod", pod, "-o", "json")
        (container,) = json.loads(shown)["status"]["containerStatuses"]
        self.of(part).kill(container["containerID"])

    def _forget(self, part: str, pod: str) -> None:
        self.kubectl(
            part, "delete", "pod", pod, "--ignore-not-found", "--force", "--grace-period=0",
        )  # fmt: skip

    def operator(self) -> dict[str, Any]:
        """Its pod."""
        shown = self._cluster.kubectl("get", "pods", "--namespace", self.system, "-o", "json")
        (found,) = json.loads(shown)["items"]
        pod: dict[str, Any] = found
        return pod

    def operator_said(self) -> str:
        """How its container stands, and its log and that of the one before it."""
        shown = [json.dumps(self.operator()["status"].get("containerStatuses"))]
        pod = self.operator()["metadata"]["name"]
        for which in ((), ("--previous",)):
            asked = ("logs", pod, "--namespace", self.system, "--tail=60", *which)
            try:
                shown.append(self._cluster.kubectl(*asked))
            except Failed as error:  # there was none before it
                shown.append(str(error))
        return "\n".join(shown)

    def kill_operator(self) -> None:
        """By SIGKILL; the kubelet starts the next one in the same pod."""
        (container,) = self.operator()["status"]["containerStatuses"]
        self._cluster.kill(container["containerID"])

    def start(self, part: str) -> None:
        """The operator makes good again what ``kill`` did."""
        self._pause(part, False)

    def _pause(self, part: str, paused: bool) -> None:
        self.patch(part, {"spec": {"paused": paused}})

    def patch(self, part: str, change: dict[str, Any]) -> None:
        """Of its IDC or Witness object; null: what stood there goes."""
        given = json.dumps(change)
        self.kubectl(part, "patch", self.kind(part).lower(), part, "--type=merge", "-p", given)

    def drain_node(self, part: str, seconds: int) -> str:
        """As whoever mends the node does, of this part's pod; returns what kubectl said once it is
        gone from there. Raises Failed when it is not evicted in time."""
        pods = f"app.kubernetes.io/instance={part}"
        try:
            return self.of(part).kubectl(
                "drain", settings.NODE, f"--pod-selector={pods}", "--delete-emptydir-data",
                f"--timeout={seconds}s",
            )  # fmt: skip
        finally:
            self.uncordon(part)

    @contextlib.asynccontextmanager
    async def lab(self) -> AsyncIterator[PodsLab]:
        lab = PodsLab(self)
        try:
            yield lab
        except BaseException:
            for part in self.namespaces:
                print(f"--- {part}\n{self.said(part)}")
            print(f"--- operator\n{self.operator_said()}")
            raise
        finally:
            await lab.close()


class PodsLab(Lab):
    """What it asks of the deployment goes by its endpoints."""

    def __init__(self, pods: Pods) -> None:
        super().__init__(Local.open(pods.data))
        self.pods = pods

    async def kill(self, idc: str) -> None:
        await asyncio.to_thread(self.pods.kill, idc)

    async def stop(self, idc: str) -> None:
        """And at once another pod is made."""
        await asyncio.to_thread(self.pods.delete_pod, idc)

    @contextlib.asynccontextmanager
    async def lost(self, idc: str, pod: str) -> AsyncIterator[float]:
        """One pod, with its node, while the block runs; since when."""
        try:
            yield await asyncio.to_thread(self.pods.lose, idc, pod)
        finally:
            await asyncio.to_thread(self.pods.uncordon, idc)

    async def start(self, idc: str, serving: bool = True) -> None:
        await asyncio.to_thread(self.pods.start, idc)
        if serving:
            await asyncio.to_thread(self.pods.wait_ready, idc)

    async def imctl(self, *arguments: str) -> tuple[int, str]:
        return 0, await asyncio.to_thread(self.pods.imctl, *arguments)

    def log(self, idc: str) -> str:
        return self.pods.kubectl(idc, "logs", f"{self.pods.workload(idc)}-0")


@contextlib.contextmanager
def running(
    cluster: Cluster,
    folder: Path,
    edit: Edit | None = None,
    apart: Sequence[str] = (),
    source: Path = TWO_IDCS,
    elsewhere: Mapping[str, Cluster] = MappingProxyType({}),
    shared: Mapping[str, Engines] = NO_ENGINES,
) -> Iterator[Pods]:
    """By `imctl deploy`, until all of it serves. Its ports are those of every other: one at a time.
    ``elsewhere`` and ``shared``: as of ``Pods``. Raises Failed."""

    def layout_of(part: str) -> settings.Layout:
        return elsewhere.get(part, cluster).layout

    own = region_file(folder, layout_of, edit, apart, source, shared)
    pods = Pods(cluster, folder, uuid4().hex[:6], apart, elsewhere, shared)
    try:
        for part, namespace in pods.namespaces.items():
            pods.of(part).kubectl("create", "namespace", namespace)
            pods.of(part).kubectl("label", "namespace", namespace, LABEL)
            pods.of(part).volumes([(namespace, f"data-{pods.workload(part)}-0")])
        for part, engines in shared.items():
            pods.of(part).volumes([(pods.namespaces[part], f"data-{part}-im-{FIRST}")])
            pods.apply(part, engines.secret())
        for one in pods.clusters.values():
            _install(one, pods)
        pods.imctl("deploy", str(own), "--sites", str(pods.sites_file()))
        for part in apart:
            pods.role_secret(part, VIEWER)
        pods.wait_ready(*(part for part in pods.namespaces if part not in shared))
        for part in shared:
            pods.wait_cores(part)
        for part in apart:
            pods.wait_gateways(part)
        yield pods
    finally:
        for one in pods.clusters.values():
            with contextlib.suppress(Failed):
                one.helm("uninstall", "op", "--namespace", pods.system)
            for namespace in (*pods.namespaces.values(), pods.system):
                with contextlib.suppress(Failed):  # one that a test has ended
                    one.kubectl(
                        "delete", "namespace", namespace, "--ignore-not-found", "--wait=false"
                    )


def _install(cluster: Cluster, pods: Pods) -> None:
    """The operator, of these namespaces alone: it may be there for a while when other tests go on.
    Raises Failed."""
    only = ",".join(name for part, name in pods.namespaces.items() if pods.of(part) is cluster)
    cluster.helm(
        "install", "op", str(OPERATOR), "--namespace", pods.system, "--create-namespace",
        "--set", f"image={image.NAME},replicas=1,namespaces={{{only}}}",
        # With the chart's own requests: without one it has a hundredth of what the IDCs have
        # when all are busy, and loses its lease while it makes the load of a drill.
        "--set", "drills.enabled=true",
    )  # fmt: skip
    for kind in KINDS:
        until_known(cluster, kind.plural)


@contextlib.contextmanager
def operator_rights(cluster: Cluster, namespace: str, folder: Path) -> Iterator[Path]:
    """A kubeconfig with the token of the chart's service account, which works in ``namespace``, and
    nothing else."""
    rendered = cluster.helm(
        "template", "op", str(OPERATOR), "--namespace", namespace, "--set",
        f"image=imctl:1,namespaces={{{namespace}}}", "--show-only", "templates/rbac.yaml",
    )  # fmt: skip
    cluster.kubectl("apply", "-f", "-", given=rendered)
    token = cluster.kubectl("create", "token", "op-im-operator", "--namespace", namespace)
    config = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token.strip()}}]
    own = folder / "kubeconfig"
    own.write_text(json.dumps(config))
    try:
        yield own
    finally:
        kinds = ("clusterrole", "clusterrolebinding")
        cluster.kubectl("delete", *(f"{kind}/{namespace}-op-im-operator" for kind in kinds))


def until_known(cluster: Cluster, plural: str) -> None:
    """Until the API server serves this kind. `kubectl wait` stumbles over a CRD without
    conditions. Raises Failed."""
    deadline = time.monotonic() + 30
    while True:
        try:
            cluster.kubectl("get", plural, "--all-namespaces")
            return
        except Failed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
