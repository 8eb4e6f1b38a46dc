"""An IDC on a Kubernetes of its own, the other one with the witness on another, each in a network
namespace of its own: one sites file, two contexts, two operators. Everybody talks across them; an
IDC is lost and comes back, and then its whole cluster is lost, with its API server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from imctl.testing.cast import Cast
from imctl.testing.cluster import image, programs
from imctl.testing.cluster import lab as pods_lab
from imctl.testing.cluster.cluster import Cluster, running
from tests.kubernetes.losing import failed_over, killed_and_given_back
from tests.kubernetes.test_three_idcs import soon_back

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

VICTIM = "fra"


@pytest.fixture
def two(cluster_programs: programs.Programs, tmp_path: Path) -> Iterator[tuple[Cluster, Cluster]]:
    with programs.getting():
        archive = image.build()
    with running(cluster_programs, tmp_path) as one, running(cluster_programs, tmp_path) as other:
        for each in (one, other):
            each.load(archive)
        one.join(other)
        yield one, other


async def test_an_idc_with_a_control_plane_of_its_own_is_lost_given_back_and_lost_with_it(
    two: tuple[Cluster, Cluster], tmp_path: Path, figures: Callable[[str, object], None]
) -> None:
    cluster, its = two
    elsewhere = {VICTIM: its}
    began = time.monotonic()
    with pods_lab.running(cluster, tmp_path, soon_back, elsewhere=elsewhere) as pods:
        figures("imctl deploy to two control planes, s", round(time.monotonic() - began, 1))
        assert len(pods.clusters) == 2 and pods.of(VICTIM) is its
        assert len(cluster.kubectl("get", "idc", "-A", "-o", "name").split()) == 1
        (other,) = (idc for idc in pods.idcs if idc != VICTIM)
        async with pods.lab() as lab, Cast(lab, tmp_path) as cast:
            couples = await cast.couples(6, VICTIM, other)
            async with cast.talking(couples):
                await asyncio.sleep(3)
                figure = partial(
                    figures, "of two control planes, from kill -9 of an IDC to its failover, s"
                )
                await killed_and_given_back(lab, cast, couples[0], VICTIM, [other], figure)
                await asyncio.sleep(2)
            await cast.judge()

        async with pods.lab() as lab, Cast(lab, tmp_path, first=101) as cast:
            couples = await cast.couples(4, VICTIM, other)
            async with cast.talking(couples):
                await asyncio.sleep(2)
                began = time.monotonic()
                cast.recorder.fault(VICTIM, "kill")
                await asyncio.to_thread(its.stop)
                cast.recorder.fault(VICTIM, "killed")
                figure = partial(
                    figures, "from the end of an IDC's whole cluster to its failover, s"
                )
                await failed_over(lab, couples[0], VICTIM, [other], began, figure)
                await asyncio.sleep(2)
            await cast.judge([other])  # nothing of the victim comes back
