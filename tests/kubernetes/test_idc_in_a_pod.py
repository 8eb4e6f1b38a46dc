"""Two IDCs and a witness in pods that the operator made: clients from outside chat through their
Services, a pod is deleted under load, an IDC is lost and comes back. Nobody loses a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imctl.testing.cast import Cast
from imctl.testing.cluster import lab as pods_lab
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.lab import Pods

pytestmark = pytest.mark.e2e

Figures = Callable[[str, object], None]
VICTIM, OTHER = "fra", "dub"


@pytest.fixture(scope="module")
def pods(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    with pods_lab.running(cluster, tmp_path_factory.mktemp("pods")) as found:
        yield found


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
