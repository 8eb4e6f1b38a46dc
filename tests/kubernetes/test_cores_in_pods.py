"""An IDC of which another core stands by, in pods, on a Kafka, a PD with the TiKV-protocol mock and
an etcd that run beside the cluster: the core that serves is lost while clients talk across the
IDCs, the other one takes its place, and then the same the other way round. Then the nodes of both
are drained at once. No connection is lost, and no message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imctl.engines.binaries import Program
from imctl.errors import Failed
from imctl.reconcile.cores import TAKES_OVER_MS
from imctl.testing.cast import Cast, Couple
from imctl.testing.cluster import engines, settings
from imctl.testing.cluster import lab as pods_lab
from imctl.testing.cluster.cluster import Cluster
from imctl.testing.cluster.lab import Pods, PodsLab
from imctl.testing.lab import until
from tests.kubernetes.test_idc_in_a_pod import connections

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

Figures = Callable[[str, object], None]
VICTIM, OTHER = "fra", "dub"
OWN, BESIDE = f"{VICTIM}-idc-0", f"{VICTIM}-im-2"
SAID_S = 60.0  # some 5 s where the machine does nothing else
COMES_BACK_S = 120.0
DRAIN_ASKS_S = 5.0  # `kubectl drain`, until an eviction is let pass


def patient(spec: dict[str, Any]) -> None:
    """Clients are kept, and the IDC is not declared failed, for as long as another core of it may
    take to take over. Nor is a connection given up because the machine is busy."""
    spec["safety"] = {"hold_ms": TAKES_OVER_MS}
    spec["client"] = {"heartbeat_timeout_ms": 20_000}


async def holds(what: Callable[[], bool], seconds: float, otherwise: str) -> None:
    async def asked() -> bool:
        return await asyncio.to_thread(what)

    await until(asked, seconds, otherwise)


def phases(pods: Pods) -> tuple[str, str, str]:
    """Of the IDC and of its IMCluster, and which pod the latter names as the one that serves."""
    idc = pods.kubectl(VICTIM, "get", "idc", VICTIM, "-o", "jsonpath={.status.phase}")
    path = "jsonpath={.status.phase} {.status.serving}"
    cores, _, serving = pods.kubectl(VICTIM, "get", "imcluster", VICTIM, "-o", path).partition(" ")
    return idc, cores, serving


async def taken_over(lab: PodsLab, couple: Couple, lost: str, figures: Figures) -> None:
    """The core of this pod, by the other one, for which it stands by once it is back."""
    pods, other = lab.pods, BESIDE if lost == OWN else OWN
    named = "" if other == OWN else other  # by the IMCluster, which is not about the IDC's own
    assert await asyncio.to_thread(pods.cores, VICTIM) == {lost: True, other: False}
    async with lab.lost(VICTIM, lost) as since:

        def took(what: str) -> None:
            figures(f"from kill -9 of {lost} {what}, s", round(time.monotonic() - since, 1))

        assert await couple.here.send(couple.conversation)
        took(f"until {other} acks a message")
        await holds(
            lambda: pods.cores(VICTIM) == {other: True},
            SAID_S,
            f"{other} does not serve alone",
        )
        await holds(lambda: phases(pods)[2] == named, SAID_S, "the IMCluster does not say so")
        took("until the IMCluster says who serves")
        await holds(lambda: phases(pods)[0] == "Serving", SAID_S, f"{VICTIM} does not serve")
        took("until the IDC is Serving")
    both = {lost: False, other: True}
    await holds(lambda: pods.cores(VICTIM) == both, COMES_BACK_S, f"{lost} is not back")
    stands_by = "another core of this IDC serves: this one stands by"
    await holds(
        lambda: stands_by in pods.kubectl(VICTIM, "logs", lost), COMES_BACK_S, f"{lost} is not idle"
    )
    whole = ("Serving", "Serving", named)
    await holds(lambda: phases(pods) == whole, COMES_BACK_S, f"{lost} is not said to stand by")


async def drained_at_once(lab: PodsLab) -> None:
    """The nodes of both cores: whoever drains the second one asks again and again, and must wait
    until the first core is back elsewhere."""
    pods, cluster = lab.pods, lab.pods.of(VICTIM)
    cores = await asyncio.to_thread(pods.cores, VICTIM)
    (serving,) = (pod for pod, serves in cores.items() if serves)
    (waiting,) = (pod for pod, serves in cores.items() if not serves)

    def evict_serving() -> str:
        """Why it is not evicted."""
        try:
            pods.evict(VICTIM, serving)
        except Failed as error:
            return str(error)
        return ""

    await asyncio.to_thread(cluster.kubectl, "cordon", settings.NODE)
    try:
        await asyncio.to_thread(pods.evict, VICTIM, waiting)
        for _ in range(3):
            await asyncio.sleep(DRAIN_ASKS_S)
            assert "disruption budget" in await asyncio.to_thread(evict_serving)
    finally:
        await asyncio.to_thread(pods.uncordon, VICTIM)
    await holds(lambda: not evict_serving(), COMES_BACK_S, f"{serving} is never evicted")
    both = {serving: False, waiting: True}
    await holds(lambda: pods.cores(VICTIM) == both, COMES_BACK_S, f"{serving} is not back")


async def test_a_core_that_stands_by_takes_over_and_is_relieved_in_turn(
    cluster: Cluster,
    kafka_program: Program,
    tikv_programs: tuple[Program, Program],
    etcd_program: Program,
    tmp_path: Path,
    figures: Figures,
) -> None:
    programs, host = (kafka_program, tikv_programs, etcd_program), cluster.layout.machine_address
    with (
        engines.running(*programs, tmp_path / "engines", host) as its,
        pods_lab.running(cluster, tmp_path, patient, [VICTIM], shared={VICTIM: its}) as pods,
    ):
        async with pods.lab() as lab, Cast(lab, tmp_path) as cast:
            couples = await cast.couples(6, VICTIM, OTHER)
            serving = await asyncio.to_thread(pods.cores, VICTIM)
            first = OWN if serving[OWN] else BESIDE  # whoever was there first
            async with cast.talking(couples):
                await asyncio.sleep(2)
                stood = len(connections(cast))
                for lost in (first, BESIDE if first == OWN else OWN):
                    await taken_over(lab, couples[0], lost, figures)
                    await asyncio.sleep(2)
                await drained_at_once(lab)
            assert connections(cast)[stood:] == [], "a connection did not survive"
            assert cast.refusals == []
            await cast.judge()
