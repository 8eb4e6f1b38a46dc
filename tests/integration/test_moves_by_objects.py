"""Moves that `imctl` has the operator ask for: the command as people run it, an API server that
keeps objects, the operator's own code on it, and a node, all but the first in this process. With
real ones: tests/kubernetes/test_moves_live.py."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from aiohttp import web
from kubernetes_asyncio.client import ApiClient, Configuration

from imcore.errors import OutcomeUnknown
from imcore.runtime import SystemClock
from imctl import byoperator
from imctl.api.kinds import KINDS
from imctl.byoperator import ByOperator
from imctl.reconcile.cluster import MANAGER, Cluster
from imctl.reconcile.lease import WORKS_IN
from imctl.reconcile.observed import Owner
from imctl.reconcile.peers import Peers
from imctl.reconcile.runs import Runs
from imctl.target import operators
from imctl.target.base import Place
from imctl.target.operators import Operator
from imctl.target.runfile import RunFile
from imctl.testing.onenode import running
from services.control.rules import Change, Kind
from services.node.node import Node
from services.policy.document import IdcState
from tests.integration.test_imctl_traffic import audit, imctl, state, until
from tests.integration.test_kubernetes_target import API, Server

NAMESPACE = "im-fra"
LEASES = "/apis/coordination.k8s.io/v1"
LEASE = f"{LEASES}/namespaces/im-system/leases/{MANAGER}"
OPERATIONS = f"{API}/namespaces/{NAMESPACE}/trafficoperations"
OVER = ("--override", "active-idcs-min")  # the only IDC is drained
Object = dict[str, Any]


class Objects(Server):
    """Also takes new objects, by their names, and statuses; and tells which kinds there are."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = {kind.name for kind in KINDS}
        self.posted: list[str] = []
        self.movers_only = False  # all but the operator may make and get TrafficOperations

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path, plurals = request.path, {kind.plural for kind in KINDS}
        others = self.movers_only and request.headers["User-Agent"] != "operator"
        may = (path == API or path.startswith(OPERATIONS)) and request.method in ("GET", "POST")
        if (others and not may) or (request.method == "GET" and path == OPERATIONS and others):
            return web.json_response({"message": f"you may not {path}"}, status=403)
        if path == API:
            return web.json_response({"resources": [{"kind": each} for each in self.kinds]})
        if path == f"{LEASES}/leases":
            assert request.query["fieldSelector"] == f"metadata.name={MANAGER}"
            return web.json_response(
                {"items": [self.objects[LEASE]] if LEASE in self.objects else []}
            )
        if request.method == "POST":
            body = await request.json()
            path += f"/{body['metadata']['name']}"
            if path in self.objects:
                return web.json_response({"message": "it exists"}, status=409)
            made = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"uid": f"u-{len(self.objects)}", "generation": 1, "creationTimestamp": made}
            self.posted.append(path)
            self.objects[path] = body | {"metadata": body["metadata"] | about}
            return web.json_response(self.objects[path], status=201)
        if path.endswith("/status"):
            body = yaml.safe_load(await request.text())
            found = self.objects[path.removesuffix("/status")]
            found["status"] = body["status"]
            return web.json_response(found)
        if request.method == "GET" and path.rpartition("/")[2] in plurals:
            items = [each for at, each in self.objects.items() if at.startswith(f"{path}/")]
            return web.json_response({"items": items})
        return await super()._answer(request)

    def lease(self, holder: str = "op-1", works_in: str = NAMESPACE) -> None:
        """Renewed now."""
        now = datetime.now(UTC).isoformat()
        before = self.objects.get(LEASE, {"metadata": {"resourceVersion": "0"}})
        version = str(int(before["metadata"]["resourceVersion"]) + 1)
        about = {"name": MANAGER, "namespace": "im-system", "resourceVersion": version}
        self.objects[LEASE] = {
            "metadata": about | {"annotations": {WORKS_IN: works_in}},
            "spec": {"holderIdentity": holder, "renewTime": now},
        }

    def secret(self, role: str, pki: Path) -> None:
        files = {"ca.crt": "ca.pem", "tls.crt": f"{role}.pem", "tls.key": f"{role}.key"}
        name = f"imctl-{role}"
        self.objects[f"/api/v1/namespaces/{NAMESPACE}/secrets/{name}"] = {
            "metadata": {"name": name},
            "data": {
                key: base64.b64encode((pki / file).read_bytes()).decode()
                for key, file in files.items()
            },
        }

    def operations(self) -> list[Object]:
        return [each for path, each in self.objects.items() if path.startswith(OPERATIONS)]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    found = Objects()
    with found:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "clusters": [{"name": "here", "cluster": {"server": found.url}}],
            "users": [{"name": "me", "user": {}}],
        }  # fmt: skip
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        yield found


@contextlib.asynccontextmanager
async def deployed(api: Objects, folder: Path) -> AsyncIterator[Node]:
    """One IDC, of which `imctl` thinks that it has brought it to a cluster."""
    async with running(folder, faults=False) as node:
        region = yaml.safe_load((folder / "region.yaml").read_text())
        api.objects[f"{API}/namespaces/{NAMESPACE}/regions/three-idc"] = {"spec": region["spec"]}
        site = {"namespace": NAMESPACE, "spec": {"drills_from": [NAMESPACE]}}
        sites = {"sites": {"fra": site}, "spec": {"image": "imctl:1"}}
        api.objects[f"/api/v1/namespaces/{NAMESPACE}/secrets/region-keys"] = {"data": {}}
        own = str(folder / "region.yaml")
        RunFile(own, False, "", elsewhere=True, sites=sites).write(folder)
        for role in ("operator", "admin"):
            api.secret(role, folder / "pki")
        api.lease()
        yield node


@contextlib.asynccontextmanager
async def operator(api: Objects, folder: Path) -> AsyncIterator[None]:
    """Carries out what TrafficOperations say, as the operator's process does."""
    events: list[Object] = []

    async def tell(event: Object) -> None:
        events.append(event)

    async def work() -> None:
        while True:
            api.lease()
            for each in api.operations():
                about = each["metadata"]
                owner = Owner(each["kind"], NAMESPACE, about["name"], about["uid"], 1)
                await runs.reconcile(owner, each)
            await asyncio.sleep(0.3)

    async with ApiClient(Configuration(host=api.url)) as client:
        client.user_agent = "operator"
        cluster = Cluster(client, lambda: 5.0)
        peers = Peers(SystemClock(), folder / "operator")
        runs = Runs(cluster, peers, lambda: datetime.now(UTC).isoformat(), tell)
        task = asyncio.create_task(work())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_the_operator_moves_as_imctl_does_and_both_are_read_back(
    api: Objects, tmp_path: Path
) -> None:
    async with deployed(api, tmp_path), operator(api, tmp_path):
        would = await imctl(tmp_path, "drain", "fra", *OVER, "--dry-run")
        assert (would.status, would.document["decision"], api.posted) == (0, "would commit", [])
        done = await imctl(tmp_path, "drain", "fra", *OVER, "--yes", "--reason", "new disks")
        assert done.status == 0, done
        assert done.document["decision"] == "committed"
        assert done.document["overridden"][0]["rule"] == "active-idcs-min"
        assert would.document.keys() - {"plan"} == done.document.keys()
        name = done.document["operation"]
        (made,) = api.operations()
        spec, own = made["spec"], made["metadata"]["name"]
        assert (spec["move"], spec["idc"], spec["certificate"]) == ("drain", "fra", "imctl-admin")
        assert (spec["expect_epoch"], spec["reason"]) == (1, "new disks")
        assert "@" in spec["asked_by"]
        assert (made["status"]["operation"], made["status"]["state"]) == (name, "done")
        assert f"asked for by the operator op-1: TrafficOperation {NAMESPACE}/{own}" in done.errors
        assert "drained of fra by controller fra" in done.errors
        assert f"TrafficOperation {NAMESPACE}/{own}: Ended, done" in done.errors
        assert f"{name} is done after" in done.errors
        assert not (tmp_path / "audit.jsonl").exists()  # it is the operator that has asked

        shown = (await imctl(tmp_path, "op", "show", f"{NAMESPACE}/{own}")).document
        assert (shown["id"], shown["object"]) == (name, f"{NAMESPACE}/{own}")
        assert shown["by"] == f"TrafficOperation {NAMESPACE}/{own}, for {spec['asked_by']}"
        (listed,) = (await imctl(tmp_path, "op", "list")).document
        assert listed["object"] == f"{NAMESPACE}/{own}"
        read = (await imctl(tmp_path, "status")).document["objects"]
        assert [row["object"] for row in read["moves"]] == [f"{NAMESPACE}/{own}"]
        assert (read["moves"][0]["operation"], read["moves"][0]["step"]) == (name, "drained")
        seen = await imctl(tmp_path, "status", json_too=False)
        assert f"imop {NAMESPACE}/{own}" in seen.document


async def test_what_the_rules_refuse_is_not_written_and_what_the_policy_has_overtaken_is_refused(
    api: Objects, tmp_path: Path
) -> None:
    async with deployed(api, tmp_path) as node:
        refused = await imctl(tmp_path, "drain", "fra", "--yes", "--by", "operator")
        assert (refused.status, refused.document["decision"]) == (3, "refused")
        assert refused.document["blockers"][0]["rule"] == "active-idcs-min"
        assert api.posted == []

        asking = asyncio.create_task(imctl(tmp_path, "drain", "fra", *OVER, "--yes"))
        await until(lambda: api.posted)
        faster = await imctl(tmp_path, "cordon", "fra", *OVER, "--yes")
        assert faster.status == 0, faster
        async with operator(api, tmp_path):
            late = await asking
        assert (late.status, late.document["decision"]) == (3, "refused")
        assert [each["rule"] for each in late.document["blockers"]] == ["expect-epoch"]
        assert state(node) is IdcState.CORDONED


async def test_without_an_operator_it_asks_itself_and_one_that_dies_is_told_of(
    api: Objects,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with deployed(api, tmp_path) as node:
        asked = ("drain", "fra", *OVER, "--yes")
        api.objects[LEASE]["spec"]["renewTime"] = "2026-01-01T00:00:00Z"
        gone = await imctl(tmp_path, *asked, "--by", "operator")
        assert gone.status == 1
        assert "the operator op-1 does not renew its Lease any more" in gone.errors
        assert "--by registries" in gone.errors
        api.lease(works_in="im-dub")
        elsewhere = await imctl(tmp_path, *asked, "--dry-run")
        assert "no operator holds its Lease there" in elsewhere.errors
        api.lease()
        del api.objects[f"/api/v1/namespaces/{NAMESPACE}/secrets/imctl-admin"]
        lacking = await imctl(tmp_path, *asked, "--dry-run")
        assert "there is no Secret imctl-admin" in lacking.errors
        api.secret("admin", tmp_path / "pki")
        assert api.posted == []

        monkeypatch.setattr(byoperator, "GONE_S", 2.0)
        monkeypatch.setattr(operators, "LEASE_S", 1.0)
        monkeypatch.setattr(operators, "LOOK_S", 0.3)
        place = Place("", NAMESPACE)
        told = Operator(place, "im-system", "op-1", sure=True)  # it was when it was asked
        change = Change(Kind.DRAIN, "fra", "r1", "operator", overrides=OVER[1:])
        async with ByOperator(told, "three-idc", "", SystemClock()) as way:
            with pytest.raises(OutcomeUnknown) as left:
                await way.submit(cast(Any, None), change, 1)
        assert "no operator is there any more (op-1 was)" in str(left.value)
        assert "waiting for another one" in capsys.readouterr().err
        (made,) = api.operations()
        name = made["metadata"]["name"]
        assert f"`kubectl -n {NAMESPACE} delete imop {name}`" in str(left.value)

        direct = await imctl(tmp_path, *asked, "--by", "registries")
        assert direct.status == 0, direct
        assert audit(tmp_path)[-1]["decision"] == "committed"
        async with operator(api, tmp_path):  # the next one
            await until(lambda: made.get("status", {}).get("phase") == "Refused")
        assert made["status"]["blockers"][0]["rule"] == "expect-epoch"
        assert state(node) is IdcState.DRAINED


async def test_who_may_only_make_operations_moves_by_them(api: Objects, tmp_path: Path) -> None:
    """Neither Leases nor Secrets nor pods are theirs to see, and the certificate is a viewer's."""

    async with deployed(api, tmp_path), operator(api, tmp_path):
        api.movers_only = True
        unsure = await imctl(tmp_path, "drain", "fra", *OVER, "--dry-run")
        assert "its Lease may not be read" in unsure.errors
        for role in ("operator", "admin"):
            (tmp_path / "pki" / f"{role}.key").rename(tmp_path / f"{role}.key")
        done = await imctl(tmp_path, "drain", "fra", *OVER, "--yes", "--by", "operator")
        assert done.status == 0, done
        refused = await imctl(tmp_path, "failback", "fra", "--yes", "--by", "registries")
        assert (refused.status, refused.document["blockers"][0]["rule"]) == (3, "role")


async def test_the_operator_runs_a_drill_and_its_report_is_fetched(
    api: Objects, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    asked = ("drill", "run", "idc-loss", "--by", "operator", "--yes")
    report = f"/api/v1/namespaces/{NAMESPACE}/configmaps/loss-report"
    api.objects[report] = {"data": {"report.md": "# idc-loss\n", "../evil": "x"}}

    async def runs(*said: Object) -> None:
        """The next one."""
        before = len(api.posted)
        await until(lambda: len(api.posted) > before)
        for status in said:
            api.objects[api.posted[-1]]["status"] = status
            await asyncio.sleep(1.5)

    ended = {"phase": "Ended", "verdict": "deviated", "reason": "too slow", "rto_s": 9.1, "lost": 0}
    steps = (
        {"phase": "Waiting", "blocked_by": ["DrillRun a/b is under way"]},
        {"phase": "Running", "runner": "op-1"},
        ended | {"report": "loss-report"},
    )
    async with deployed(api, tmp_path), operator(api, tmp_path):
        lacking = await imctl(tmp_path, *asked, "--seed", 3, json_too=False)
        assert lacking.status == 2 and "--seed" in lacking.errors
        task = asyncio.create_task(runs(*steps))
        done = await imctl(tmp_path, *asked, "--out", out, json_too=False)
        await task
        assert done.status == 5, done
        assert "deviated: too slow" in done.document and "RTO 9.10 s" in done.document
        for said in ("Waiting: DrillRun a/b is under way", "Running by op-1", "imctl.dev/stop=WHY"):
            assert said in done.errors
        assert (out / "report.md").exists() and not (tmp_path / "evil").exists()
        spec = api.objects[api.posted[0]]["spec"]
        assert spec == {
            "region": "three-idc", "drill": "idc-loss", "certificate": "imctl-admin",
            "region_keys": "region-keys", "begin_within_s": 300,
        }  # fmt: skip
        (row,) = (await imctl(tmp_path, "status")).document["objects"]["drills"]
        assert (row["drill"], row["verdict"], row["report"]) == (
            "idc-loss", "deviated", "loss-report",
        )  # fmt: skip
        refused = {"phase": "Refused", "verdict": "refused", "blockers": ["idcs-active: no"]}
        task = asyncio.create_task(runs(refused))
        no = await imctl(tmp_path, *asked, json_too=False)
        await task
        assert no.status == 3 and "\n  idcs-active: no" in no.errors
