"""Two IDCs and a witness in pods that the operator made: clients from outside chat through their
Services, a pod is deleted under load, an IDC is lost and comes back, a changed region file is
deployed. Nobody loses a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.testing.cast import Cast
from imctl.testing.cluster import lab as pods_lab
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.lab import Pods

pytestmark = pytest.mark.e2e

Figures = Callable[[str, object], None]
VICTIM, OTHER = "fra", "dub"


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    with pods_lab.running(cluster, tmp_path_factory.mktemp("pods"), often_moved) as found:
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
        report = await cast.judge()
        assert report.clean, (report.sentence(), report.examples)
        assert [restarts(pods, part) for part in pods.namespaces] == [0, 0, 0]


async def test_an_idc_whose_pods_are_killed_is_taken_over_and_given_back(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    async with pods.lab() as lab, Cast(lab, tmp_path, first=101) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        async with cast.talking(couples):
            await asyncio.sleep(1)
            began = time.monotonic()
            await cast.kill(VICTIM)
            await lab.wait_state(VICTIM, "failed")
            figures(
                "from kill -9 of its pod to its failover, s", round(time.monotonic() - began, 1)
            )
            here = couples[0].here
            assert await here.send(couples[0].conversation) and here.idc == OTHER
            await lab.start(VICTIM)
            code, said = await lab.imctl("failback", VICTIM, "--yes")
            assert code == 0, said
            await asyncio.sleep(2)
        report = await cast.judge()
        assert report.clean, (report.sentence(), report.examples)


def with_another_gateway(pods: Pods, folder: Path) -> Path:
    """The deployment's region file with another gateway port of one IDC, so of its Service too."""
    document = yaml.safe_load((pods.data / "region.yaml").read_text())
    (own,) = (idc["endpoints"] for idc in document["spec"]["idcs"] if idc["name"] == VICTIM)
    host, _, port = own["gateway"].rpartition(":")
    own["gateway"] = f"{host}:{int(port) + len(pods_lab.ENDS)}"
    wanted = folder / "wanted.yaml"
    wanted.write_text(yaml.safe_dump(document))
    return wanted


async def test_a_changed_region_file_is_deployed_while_everybody_talks(
    pods: Pods, tmp_path: Path, figures: Figures
) -> None:
    wanted = str(with_another_gateway(pods, tmp_path))
    assert f"restart of {VICTIM}" in pods.imctl("plan", wanted, status=2)
    async with pods.lab() as lab, Cast(lab, tmp_path, first=201) as cast:
        couples = await cast.couples(6, VICTIM, OTHER)
        before = {part: pods.pod(part)["metadata"]["uid"] for part in pods.namespaces}
        async with cast.talking(couples):
            began = time.monotonic()
            deploy = asyncio.create_task(lab.imctl("deploy", wanted, "--yes", "--soak", "1"))
            await asyncio.sleep(2)
            await asyncio.to_thread(pods.kill_operator)  # the next one has to take it up
            code, said = await deploy
            assert code == 0 and "is done" in said, said
            figures(
                "a deploy that restarts one IDC, the operator killed, s",
                round(time.monotonic() - began, 1),
            )
        report = await cast.judge()
        assert report.clean, (report.sentence(), report.examples)
        after = {part: pods.pod(part)["metadata"]["uid"] for part in pods.namespaces}
        assert [part for part in before if before[part] != after[part]] == [VICTIM]
        assert pods.operator()["status"]["containerStatuses"][0]["restartCount"] == 1
    pods.imctl("plan", wanted)  # no difference any more


def test_the_verbs_that_a_cluster_has(pods: Pods, tmp_path: Path) -> None:
    assert "serves as" in pods.imctl("logs", VICTIM, "-n", "1000")
    assert '"serving": true' in pods.imctl("status", "-o", "json")
    assert "its pods are a cluster's" in pods.imctl("kill", VICTIM, status=3)
    assert "delete the namespaces" in pods.imctl("destroy", status=3)

    elsewhere = yaml.safe_load(pods.sites_file().read_text())
    elsewhere["sites"][VICTIM]["namespace"] = "im-nowhere"
    sites = tmp_path / "sites.yaml"
    sites.write_text(yaml.safe_dump(elsewhere))
    asked = ("deploy", str(pods.data / "region.yaml"), "--sites", str(sites))
    refused = pods.imctl(*asked, folder=tmp_path / "other", status=3)
    assert "there is no namespace im-nowhere" in refused
