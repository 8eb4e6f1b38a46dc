"""Two IDCs and a witness in pods that the operator made: clients from outside chat through their
Services, a pod is deleted under load, an IDC is lost and comes back, a changed region file and
another image are deployed. Nobody loses a message."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.errors import Failed
from imctl.testing.broken import PromiseBroken
from imctl.testing.cast import Cast
from imctl.testing.cluster import lab as pods_lab
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.lab import Pods, PodsLab
from imctl.testing.lab import until as lab_until
from services.sdk.puller import Puller
from services.sdk.session import Session
from tests.kubernetes.losing import killed_and_given_back

pytestmark = pytest.mark.e2e

Figures = Callable[[str, object], None]
ROOT = Path(__file__).parents[2]
VICTIM, OTHER = "fra", "dub"
GOES_S = 40  # of a DrillRun that is deleted, on a busy machine; some 15 s of it are for a new pod
NEXT = "localhost/imctl:next"
LATER = "localhost/imctl:later"
NOWHERE = "localhost/imctl:nowhere"  # no node has it


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    with pods_lab.running(cluster, tmp_path_factory.mktemp("pods"), often_moved, [OTHER]) as found:
        yield found


def often_moved(spec: dict[str, Any]) -> None:
    """An IDC may be drained right after its failback: the tests share a deployment."""
    spec["safety"] = {"anti_flap_ms": 0}


def restarts(pods: Pods, part: str) -> int:
    (container,) = pods.pod(part)["status"]["containerStatuses"]
    return int(container["restartCount"])


async def test_a_pod_is_deleted_while_everybody_talks_across_the_idcs(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    async with pods.lab() as lab, Cast(lab, tmp_path) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        before = pods.pod(VICTIM)["metadata"]["uid"]
        async with cast.talking(couples):
            await asyncio.sleep(2)
            began = time.monotonic()
            await lab.stop(VICTIM)
            await asyncio.to_thread(pods.wait_ready, VICTIM)
            figures("from kubectl delete pod to Ready again, s", round(time.monotonic() - began, 1))
            await lab.all_active()
            await asyncio.sleep(2)
        assert pods.pod(VICTIM)["metadata"]["uid"] != before
        await cast.judge()
        assert [restarts(pods, part) for part in pods.namespaces] == [0, 0, 0]


async def test_a_node_is_drained_once_its_idc_is_while_everybody_talks(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    """What the operator knows of an IDC that has clients forbids its eviction until then."""
    told_of = secret_of(pods, "viewer")
    pods.patch(VICTIM, {"spec": {"role_certificate": told_of, "deletion": "at_once"}})
    budget = ("wait", f"pdb/{pods.workload(VICTIM)}", "--timeout=120s")
    async with pods.lab() as lab, Cast(lab, tmp_path, first=501) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        pods.kubectl(VICTIM, *budget, "--for=jsonpath={.spec.maxUnavailable}=0")
        before = pods.pod(VICTIM)["metadata"]["uid"]
        async with cast.talking(couples):
            began = time.monotonic()
            draining = asyncio.create_task(asyncio.to_thread(pods.drain_node, VICTIM, 180))
            await asyncio.sleep(2)
            assert pods.pod(VICTIM)["metadata"]["uid"] == before and not draining.done()
            code, said = await lab.imctl("drain", VICTIM, "--yes")
            assert code == 0, said
            assert "evicted" in await draining
            await asyncio.to_thread(pods.wait_ready, VICTIM)
            await (
                lab.all_active()
            )  # what it lacks of the others' logs may stand against it at first
            figures("a node drained with its IDC, s", round(time.monotonic() - began, 1))
        assert pods.pod(VICTIM)["metadata"]["uid"] != before
        await cast.judge()
    pods.patch(VICTIM, {"spec": {"role_certificate": None, "deletion": None}})


@pytest.mark.nightly  # in CI a DrillRun does it
async def test_an_idc_whose_pods_are_killed_is_taken_over_and_given_back(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    async with pods.lab() as lab, Cast(lab, tmp_path, first=101) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        async with cast.talking(couples):
            await asyncio.sleep(1)
            figure = partial(figures, "from kill -9 of its pod to its failover, s")
            await killed_and_given_back(lab, cast, couples[0], VICTIM, [OTHER], figure)
            await asyncio.sleep(2)
        await cast.judge()


def in_short(name: str, after: str = "") -> str:
    """A ready-made drill with less of everything, since CI has to run it; ``after``: another one,
    whose method comes first."""
    document, first = (
        yaml.safe_load((ROOT / "regions" / "drills" / f"{each}.yaml").read_text())
        for each in (name, after or name)
    )
    if after:
        document["method"] = first["method"] + document["method"]
    (ours,) = document["extensions"]
    ours["load"] = {"users": 8, "rate": 8, "group_rate": 1, "canary_every_s": 0.5}
    ours["enough"] = {"acked": 100, "canaries": 8}
    ours["promised"] = {"rto_s": 15}
    for step in document["method"]:
        if step["provider"]["func"] == "hold":
            step["provider"]["arguments"]["seconds"] = 1
    return yaml.safe_dump(document)


def connections(cast: Cast) -> list[list[Any]]:
    """Every connection that a client has made or lost so far."""
    cast.recorder.flush()
    _, *rows = (json.loads(line) for line in cast.path.read_text().splitlines())
    return [row for row in rows if row[0] == "connection"]


def gateways_of(pods: Pods) -> dict[str, str]:
    """uid by name."""
    shown = pods.kubectl(
        OTHER, "get", "pods", "-l", "app.kubernetes.io/component=gateway", "-o", "json"
    )
    return {
        each["metadata"]["name"]: each["metadata"]["uid"] for each in json.loads(shown)["items"]
    }


async def holds(what: Callable[[], bool]) -> None:
    async def asked() -> bool:
        return await asyncio.to_thread(what)

    await lab_until(asked, 120, "it does not come to be so")


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Syncs from the beginning, by the IDC's incarnation."""
    found: list[str] = []
    sync = Puller.sync

    async def watched(puller: Puller, session: Session) -> None:
        if str(session.origin) not in puller._tokens:
            found.append(str(session.origin))
        await sync(puller, session)

    monkeypatch.setattr(Puller, "sync", watched)
    return found


def gateway_rows(status: str) -> dict[str, int]:
    """Of a printed status: how often each gateway has become its successor."""
    rows = json.loads(status)["idcs"][OTHER]["gateways"]
    return {row["gateway"]: row["restarts"] for row in rows}


def containers(pods: Pods) -> dict[str, list[str]]:
    """Of each gateway's pod, those that run."""
    shown = pods.kubectl(
        OTHER, "get", "pods", "-l", "app.kubernetes.io/component=gateway", "-o", "json"
    )
    return {
        each["metadata"]["name"]: [
            one["containerID"] for one in each["status"]["containerStatuses"]
        ]
        for each in json.loads(shown)["items"]
    }


async def test_gateways_restart_within_their_pods_and_every_client_goes_on(
    pods: Pods, tmp_path: Path, figures: Figures, whole: list[str]
) -> None:
    async with pods.lab() as lab, Cast(lab, tmp_path, first=601) as cast:
        couples = await cast.couples(8, VICTIM, OTHER)
        before = containers(pods)
        rows = gateway_rows(pods.imctl("status", "-o", "json"))
        assert len(before) == len(rows) == 2
        async with cast.talking(couples):
            await asyncio.sleep(1)
            stood, synced = len(connections(cast)), len(whole)
            began = time.monotonic()
            code, said = await lab.imctl("restart", OTHER)
            figures("a hot restart of two gateways in pods, s", round(time.monotonic() - began, 1))
            assert code == 0 and said.count(" restarted, ") == 2, said
            await asyncio.sleep(1)
        assert containers(pods) == before  # neither a pod nor a container is another
        again = gateway_rows(pods.imctl("status", "-o", "json"))
        assert again == {name: count + 1 for name, count in rows.items()}
        moved = connections(cast)[stood:]
        assert moved and {couple.there.idc for couple in couples} == {OTHER}
        assert whole[synced:] == [], "a client began with a full sync"
        assert [row for row in moved if not row[-1]] == [], "a connection was lost"
        await cast.judge()


async def test_gateways_are_upgraded_one_by_one_and_every_client_goes_on(
    pods: Pods, tmp_path: Path, figures: Figures, whole: list[str]
) -> None:
    async with pods.lab() as lab, Cast(lab, tmp_path, first=301) as cast:
        couples = await cast.couples(8, VICTIM, OTHER)
        before = gateways_of(pods)
        assert sorted(before) == [f"{OTHER}-gateway-1", f"{OTHER}-gateway-2"]
        async with cast.talking(couples):
            await asyncio.sleep(1)
            await holds(lambda: pods.gateways(OTHER).get("connections", 0) == len(couples))
            stood, synced = len(connections(cast)), len(whole)
            began = time.monotonic()
            sites = pods.sites_file({"cpu": "50m", "memory": "255Mi"})
            wanted = (str(pods.data / "region.yaml"), "--sites", str(sites))
            shown = await asyncio.to_thread(pods.imctl, "plan", *wanted, "-o", "json", status=2)
            plan = json.loads(shown)
            assert [each["field"] for each in plan["changes"]] == [
                f"sites.{OTHER}.gateways.resources.memory"
            ]
            assert (plan["order"], plan["in_place"], plan["restarts"]) == ([OTHER], [OTHER], [])
            code, said = await lab.imctl(
                "deploy", *wanted, "--yes", "--soak", "1", "--max-ack", "30000"
            )
            assert code == 0 and "is done" in said, said
            figures("a rolling upgrade of two gateways, s", round(time.monotonic() - began, 1))
            await asyncio.sleep(1)
        after = gateways_of(pods)
        assert not set(before.values()) & set(after.values()) and sorted(after) == sorted(before)
        moved = connections(cast)[stood:]
        assert moved and {couple.there.idc for couple in couples} == {OTHER}
        assert whole[synced:] == [], "a client began with a full sync"
        assert [row for row in moved if not row[-1]] == [], "a connection was lost"
        assert cast.refusals == []
        assert pods.gateways(OTHER)["updated"] == 2
        await cast.judge()


async def test_gateways_are_scaled_and_evicted_within_their_budget(
    pods: Pods, tmp_path: Path
) -> None:
    scale = ("scale", f"gatewaycluster/{OTHER}")
    async with pods.lab() as lab, Cast(lab, tmp_path, first=401) as cast:
        couples = await cast.couples(4, VICTIM, OTHER)
        async with cast.talking(couples):
            await asyncio.to_thread(pods.kubectl, OTHER, *scale, "--replicas=1")
            await asyncio.to_thread(pods.wait_gateways, OTHER)
            await holds(lambda: list(gateways_of(pods)) == [f"{OTHER}-gateway-1"])
            services = ("get", "service", "-o", "name")
            await holds(lambda: f"{OTHER}-gateway-2" not in pods.kubectl(OTHER, *services))
            await asyncio.to_thread(pods.kubectl, OTHER, *scale, "--replicas=2")
            await asyncio.to_thread(pods.wait_gateways, OTHER)
            budget = ("wait", f"pdb/{OTHER}-gateway", "--timeout=120s")
            allowed = "--for=jsonpath={.status.disruptionsAllowed}=1"
            await asyncio.to_thread(pods.kubectl, OTHER, *budget, allowed)
            pods.evict(OTHER, f"{OTHER}-gateway-2")
            with pytest.raises(Failed, match="disruption budget"):
                pods.evict(OTHER, f"{OTHER}-gateway-1")
            evicted = gateways_of(pods).get(f"{OTHER}-gateway-2")
            await holds(lambda: evicted not in gateways_of(pods).values())
            await holds(lambda: pods.gateways(OTHER)["ready"] == 2)
        await cast.judge()


def route_rows(pods: Pods) -> dict[str, int]:
    """How many gateways each route instance has that the core knows."""
    rows = json.loads(pods.imctl("status", "-o", "json"))["idcs"][OTHER]["routes"]
    return {row["route"]: row["gateways"] for row in rows}


async def test_all_route_instances_are_deleted_while_everybody_talks(
    pods: Pods, tmp_path: Path, figures: Figures, whole: list[str]
) -> None:
    async with pods.lab() as lab, Cast(lab, tmp_path, first=951) as cast:
        couples = await cast.couples(4, VICTIM, OTHER)
        await holds(lambda: sum(route_rows(pods).values()) == 2)
        before = route_rows(pods)
        assert len(before) == 2
        async with cast.talking(couples):
            await asyncio.sleep(1)
            stood, synced, began = len(connections(cast)), len(whole), time.monotonic()
            gone = ("delete", "pod", "-l", "app.kubernetes.io/component=route", "--wait=false")
            await asyncio.to_thread(pods.kubectl, OTHER, *gone)
            await holds(
                lambda: sum(n for name, n in route_rows(pods).items() if name not in before) == 2
            )
            took = round(time.monotonic() - began, 1)
            figures("until all gateways are linked by route instances made anew, s", took)
        assert connections(cast)[stood:] == [], "a connection did not outlive its route"
        assert whole[synced:] == [], "a client began with a full sync"
        assert cast.refusals == []
        await cast.judge()


def secret_of(pods: Pods, role: str) -> str:
    """Its name, in the victim's namespace."""
    name = f"imctl-{role}"
    pods.kubectl(VICTIM, "delete", "secret", name, "--ignore-not-found")
    pods.role_secret(VICTIM, name)
    return name


def drill_run(pods: Pods, name: str, experiment: str, lost: str) -> dict[str, Any]:
    """In the namespace from which all take drills."""
    return {
        "apiVersion": "imctl.dev/v1alpha1",
        "kind": "DrillRun",
        "metadata": {"name": name},
        "spec": {
            "region": pods.region.metadata.name,
            "experiment": experiment,
            "var": {"victim": lost},
            "certificate": secret_of(pods, "admin"),
            "region_keys": "region-keys",
            "namespaces": {part: at for part, at in pods.namespaces.items() if part != VICTIM},
        },
    }


def drill_status(pods: Pods, name: str) -> dict[str, Any]:
    shown = pods.kubectl(VICTIM, "get", "drillrun", name, "-o", "json")
    status: dict[str, Any] = json.loads(shown).get("status", {})
    return status


def until(pods: Pods, name: str, phases: tuple[str, ...], limit_s: float) -> dict[str, Any]:
    deadline = time.monotonic() + limit_s
    while (status := drill_status(pods, name)).get("phase") not in phases:
        assert time.monotonic() < deadline, (status, pods.said(VICTIM))
        time.sleep(0.5)
    return status


async def test_the_loss_of_an_idc_and_its_network_cut_as_a_drill_run(
    pods: Pods, figures: Figures
) -> None:
    """All that runs in its pod and in those of its gateways is killed and kept down, and comes
    back; then it is cut from all others, and they heal. Twice its clients are taken over, and given
    back."""
    async with pods.lab() as lab:
        await lab.all_active()
        began = time.monotonic()
        experiment = in_short("registry-minority", after="idc-loss")
        pods.apply(VICTIM, drill_run(pods, "loss", experiment, OTHER))
        await asyncio.to_thread(until_away, pods, "loss")
        status = await asyncio.to_thread(until, pods, "loss", ("Ended", "Refused"), 300)
        figures(
            "a DrillRun of an IDC's loss and of its network's, s",
            round(time.monotonic() - began, 1),
        )
        figures("RTO of that DrillRun, the longer one, s", status.get("rto_s"))
        report = json.loads(pods.kubectl(VICTIM, "get", "cm", status["report"], "-o", "json"))
        text = report["data"]["report.md"]
        if status["lost"]:
            raise PromiseBroken(text)
        assert status["verdict"] == "pass", (status, text)
        assert {"report.md", "report.json", "report.html"} == set(report["data"])
        for said in (f"{OTHER} is failed", f"{OTHER} is active and has its clients back"):
            assert text.count(said) == 2, text
        assert f"{OTHER} is cut from all others" in text and "links are restored" in text
        await lab.all_active()
        pods.wait_ready(OTHER)
        pods.wait_gateways(OTHER)
        pods.kubectl(VICTIM, "delete", "drillrun", "loss", "--timeout=60s")
        assert status["report"] not in pods.kubectl(VICTIM, "get", "cm", "-o", "name")


def with_another_gateway(pods: Pods, folder: Path) -> Path:
    """The deployment's region file with another gateway port of one IDC, so of its Service too."""
    document = yaml.safe_load((pods.data / "region.yaml").read_text())
    (own,) = (idc["endpoints"] for idc in document["spec"]["idcs"] if idc["name"] == VICTIM)
    host, _, port = own["gateway"].rpartition(":")
    own["gateway"] = f"{host}:{int(port) + len(pods_lab.ENDS)}"
    wanted = folder / "wanted.yaml"
    wanted.write_text(yaml.safe_dump(document))
    return wanted


async def test_a_changed_region_and_another_image_are_deployed_while_everybody_talks(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    """The image is of the IDC whose gateways are apart."""
    sites = pods.sites_file({"cpu": "50m", "memory": "255Mi"}, **{OTHER: pods.tag(NEXT)})
    wanted = (str(with_another_gateway(pods, tmp_path)), "--sites", str(sites))
    plan = json.loads(pods.imctl("plan", *wanted, "-o", "json", status=2))
    takes = {each["field"]: (each["takes"], each["units"]) for each in plan["changes"]}
    assert takes == {
        f"spec.idcs[{VICTIM}].endpoints.gateway": ("restart", [VICTIM]),
        f"sites.{OTHER}.spec.image": ("restart", [OTHER]),
        f"sites.{OTHER}.gateways.image": ("in place", [OTHER]),
        f"sites.{OTHER}.routes.image": ("in place", [OTHER]),
    }
    async with pods.lab() as lab, Cast(lab, tmp_path, first=201) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        before = {part: pods.pod(part)["metadata"]["uid"] for part in pods.namespaces}
        restarted = pods.operator()["status"]["containerStatuses"][0]["restartCount"]
        fronts = gateways_of(pods)
        async with cast.talking(couples):
            began = time.monotonic()
            deploy = asyncio.create_task(lab.imctl("deploy", *wanted, "--yes", "--soak", "1"))
            await asyncio.sleep(2)
            await asyncio.to_thread(pods.kill_operator)  # the next one has to take it up
            code, said = await deploy
            assert code == 0 and "is done" in said, said
            figures(
                "a deploy that restarts two IDCs, the operator killed, s",
                round(time.monotonic() - began, 1),
            )
        await cast.judge()
        after = {part: pods.pod(part)["metadata"]["uid"] for part in pods.namespaces}
        assert {part for part in before if before[part] != after[part]} == {VICTIM, OTHER}
        assert not set(fronts.values()) & set(gateways_of(pods).values())
        assert images_of(pods, OTHER) == {NEXT}
        container = pods.operator()["status"]["containerStatuses"][0]
        assert container["restartCount"] == restarted + 1
    for asked in (wanted, wanted[:1]):  # the sites are known from then on
        assert "no difference" in pods.imctl("plan", *asked)


def images_of(pods: Pods, part: str) -> set[str]:
    """Of all that runs of it, and is to go on."""
    shown = json.loads(pods.kubectl(part, "get", "pods", "-o", "json"))["items"]
    stay = [each for each in shown if "deletionTimestamp" not in each["metadata"]]
    return {one["image"] for each in stay for one in each["spec"]["containers"]}


def files_of(pods: Pods, folder: Path, name: str, **changes: dict[str, Any]) -> tuple[str, ...]:
    """Arguments of `imctl deploy`: the deployment's own files, changed at ``sites.PART``."""
    document = yaml.safe_load((pods.data / "sites.yaml").read_text())
    for part, fields in changes.items():
        site = document["sites"][part]
        for field, values in fields.items():
            site[field] = site.get(field, {}) | values
    sites, region = folder / f"{name}-sites.yaml", folder / f"{name}.yaml"
    sites.write_text(yaml.safe_dump(document))
    region.write_text((pods.data / "region.yaml").read_text())
    return str(region), "--sites", str(sites)


@pytest.mark.nightly
async def test_an_image_is_taken_back_by_undo_and_by_the_old_file_while_everybody_talks(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    """Of the IDC whose gateways are apart."""
    old = files_of(pods, tmp_path, "old")
    new = files_of(pods, tmp_path, "new", **{OTHER: {"spec": {"image": pods.tag(LATER)}}})
    before = images_of(pods, OTHER)
    quick = ("--yes", "--soak", "1")
    ways = [
        ("deploy", (*new, *quick), {LATER}),
        ("rollout undo", ("--yes",), before),
        ("rollout undo", ("--yes",), {LATER}),  # undone again, it is the newer one again
        ("deploy", (*old, *quick), before),
    ]
    async with pods.lab() as lab, Cast(lab, tmp_path, first=601) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        async with cast.talking(couples):
            for verb, arguments, images in ways:
                began = time.monotonic()
                said = await asyncio.to_thread(pods.imctl, *verb.split(), *arguments)
                figures(f"an image by `{verb}`, s", round(time.monotonic() - began, 1))
                assert f"{verb.split()[-1]}-" in said and "is done" in said, said
                assert await asyncio.to_thread(images_of, pods, OTHER) == images, said
        await cast.judge()
        await lab.all_active()
    assert "no difference" in pods.imctl("plan", *old)
    # Behind the first test's restarts nobody ended by itself.
    assert restarts(pods, OTHER) == 0


@pytest.mark.nightly
async def test_an_image_that_no_node_has_is_taken_back_while_everybody_talks(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    """An IDC with such an image does not come up: it has no clients then."""
    before = images_of(pods, VICTIM)
    whole = files_of(pods, tmp_path, "whole", **{VICTIM: {"spec": {"image": NOWHERE}}})
    quick = ("--yes", "--soak", "1")
    async with pods.lab() as lab, Cast(lab, tmp_path, first=701) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        async with cast.talking(couples):
            began = time.monotonic()
            command = ("deploy", *whole, *quick, "--undo-on-failure")
            said = await asyncio.to_thread(pods.imctl, *command, status=6)
            figures("an IDC's image that no node has, undone, s", round(time.monotonic() - began))
            assert "ImagePull" in said and "was undone" in said, said
            assert await asyncio.to_thread(images_of, pods, VICTIM) == before
        await cast.judge()
        await lab.all_active()


@pytest.mark.nightly
async def test_gateways_image_that_no_node_has_comes_to_one_of_them_and_is_taken_back(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    before = images_of(pods, OTHER)
    fronts = files_of(pods, tmp_path, "fronts", **{OTHER: {"gateways": {"image": NOWHERE}}})
    quick = ("--yes", "--soak", "1")
    async with pods.lab() as lab, Cast(lab, tmp_path, first=801) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        async with cast.talking(couples):
            stays = gateways_of(pods)[f"{OTHER}-gateway-1"]
            said = await asyncio.to_thread(pods.imctl, "deploy", *fronts, *quick, status=1)
            assert "is paused" in said and "ImagePull" in said, said
            assert gateways_of(pods)[f"{OTHER}-gateway-1"] == stays
            began = time.monotonic()
            said = await asyncio.to_thread(pods.imctl, "rollout", "undo", "--yes")
            figures("gateways' image that no node has, undone, s", round(time.monotonic() - began))
            assert "is done" in said, said
            assert await asyncio.to_thread(images_of, pods, OTHER) == before
            assert gateways_of(pods)[f"{OTHER}-gateway-1"] == stays
        await cast.judge()
        await lab.all_active()


def test_the_verbs_that_a_cluster_has(pods: Pods, tmp_path: Path) -> None:
    assert "serves as" in pods.imctl("logs", VICTIM, "-n", "1000")
    status = json.loads(pods.imctl("status", "-o", "json"))
    assert all(idc["serving"] for idc in status["idcs"].values())
    fronts = [f"{OTHER}.gateway-{number}" for number in (1, 2)]
    assert [status["processes"][front]["state"] for front in fronts] == ["running"] * 2
    assert status["rolling"] == {}
    assert "gateway" in pods.imctl("logs", fronts[1], "-n", "1000")
    assert "its pods are a cluster's" in pods.imctl("kill", VICTIM, status=3)
    assert "`gateways` in the sites file" in pods.imctl("restart", VICTIM, status=1)
    assert "delete the namespaces" in pods.imctl("destroy", status=3)

    elsewhere = yaml.safe_load(pods.sites_file().read_text())
    elsewhere["sites"][VICTIM]["namespace"] = "im-nowhere"
    sites = tmp_path / "sites.yaml"
    sites.write_text(yaml.safe_dump(elsewhere))
    asked = ("deploy", str(pods.data / "region.yaml"), "--sites", str(sites))
    refused = pods.imctl(*asked, folder=tmp_path / "other", status=3)
    assert "there is no namespace im-nowhere" in refused


DRILLS = ["idc-loss", pytest.param("registry-minority", marks=pytest.mark.nightly)]


@pytest.mark.parametrize("drill", DRILLS)
async def test_a_deleted_drill_run_goes_as_soon_as_all_is_undone(
    pods: Pods, figures: Figures, drill: str
) -> None:
    """While an IDC is down, or cut from all others."""
    async with pods.lab() as lab:
        name = f"deleted-{drill}"
        await in_mid_drill(pods, lab, name, drill)
        began = time.monotonic()
        gone = ("delete", "drillrun", name, f"--timeout={GOES_S}s")
        await asyncio.to_thread(pods.kubectl, VICTIM, *gone)
        figures(f"a DrillRun {name}, s", round(time.monotonic() - began, 1))
        await nothing_left(pods, lab)


@pytest.mark.nightly
@pytest.mark.parametrize("drill", ["idc-loss", "registry-minority"])
async def test_a_drill_run_whose_operator_is_killed_leaves_nothing(
    pods: Pods, figures: Figures, drill: str
) -> None:
    async with pods.lab() as lab:
        name = f"orphaned-{drill}"
        await in_mid_drill(pods, lab, name, drill)
        began = time.monotonic()
        await asyncio.to_thread(pods.kill_operator)
        status = await asyncio.to_thread(until, pods, name, ("Ended",), 150)
        assert status["verdict"] == "aborted", status
        assert "ended while it ran" in status["reason"]
        figures(f"a DrillRun {name}, s", round(time.monotonic() - began, 1))
        await nothing_left(pods, lab)


async def in_mid_drill(pods: Pods, lab: PodsLab, name: str, drill: str) -> None:
    """It is begun, and the IDC whose gateways are apart is down, or cut from all others."""
    await lab.all_active()
    pods.apply(VICTIM, drill_run(pods, name, in_short(drill), OTHER))
    if drill == "idc-loss":
        await asyncio.to_thread(until_away, pods, name)
    else:
        await asyncio.to_thread(until_cut, pods, OTHER, 90)


def until_away(pods: Pods, drill: str) -> None:
    """Until no pod of the IDC whose gateways are apart is there, and none is wanted."""
    asked = ("get", "idc,gatewaycluster", "-o", "jsonpath={.items[*].status.phase}")
    deadline = time.monotonic() + 180
    while pods.kubectl(OTHER, *asked) != "Down Down":
        status = drill_status(pods, drill)
        ended = status.get("phase") not in (None, "Waiting", "Running")
        assert not ended and time.monotonic() < deadline, (status, pods.said(OTHER))
        time.sleep(0.3)
    deadline = time.monotonic() + 60
    while pods.kubectl(OTHER, "get", "pods", "-o", "name"):
        assert time.monotonic() < deadline, pods.said(OTHER)
        time.sleep(0.2)


async def nothing_left(pods: Pods, lab: PodsLab) -> None:
    await asyncio.to_thread(pods.wait_ready, OTHER)
    await asyncio.to_thread(pods.wait_gateways, OTHER)
    assert "down-until" not in pods.kubectl(OTHER, "get", "idc", OTHER, "-o", "json")
    for idc in pods.idcs:
        assert cut_links(pods, idc) == []
    await lab.all_active()


def until_cut(pods: Pods, idc: str, limit_s: float) -> None:
    """From all others."""
    deadline = time.monotonic() + limit_s
    while len(found := cut_links(pods, idc)) < 2 * (len(pods.namespaces) - 1):  # both ways
        assert time.monotonic() < deadline, found
        time.sleep(0.3)


def cut_links(pods: Pods, idc: str) -> list[str]:
    """As the IDC says itself."""
    document = json.loads(pods.imctl("status", "-o", "json"))["idcs"][idc]
    found: list[str] = document.get("links_cut", [])
    return found


def action(func: str, **arguments: Any) -> dict[str, Any]:
    provider = {"type": "python", "module": "imctl.drill.actions", "func": func}
    return {"name": func, "type": "action", "provider": provider | {"arguments": arguments}}


@pytest.mark.nightly
async def test_lost_data_a_slow_link_a_slow_disk_and_a_wrong_clock_as_a_drill_run(
    pods: Pods, figures: Figures
) -> None:
    document = yaml.safe_load(in_short("idc-loss-for-good"))
    document["method"] += [
        action("slow", a=VICTIM, b=OTHER, delay_ms=300, jitter_ms=50, loss=0.02),
        action("hold", seconds=4),
        action("heal"),
        action("fill_disk", idc=VICTIM, full=False, fsync_delay_ms=40),
        action("hold", seconds=3),
        action("skew_clock", idc=OTHER, offset_ms=20_000),
        action("hold", seconds=3),
        action("undo_faults"),
        action("wait_steady", within_s=60),
    ]
    async with pods.lab() as lab:
        await lab.all_active()
        began = time.monotonic()
        pods.apply(VICTIM, drill_run(pods, "others", yaml.safe_dump(document), OTHER))
        status = await asyncio.to_thread(until, pods, "others", ("Ended", "Refused"), 240)
        figures("a DrillRun of all other faults, s", round(time.monotonic() - began, 1))
        assert status.get("report"), status
        report = json.loads(pods.kubectl(VICTIM, "get", "cm", status["report"], "-o", "json"))
        text = report["data"]["report.md"]
        if status["lost"]:
            raise PromiseBroken(text)
        assert status["verdict"] == "pass", (status, text)
        for said in ("all data of dub is deleted", "is slow: 300", "the clock of dub is +20000"):
            assert said in text, text
        await nothing_left(pods, lab)
