"""An IDC of which another core stands by, in pods, on a Kafka, a PD with the TiKV-protocol mock and
an etcd that run beside the cluster: the core that serves is lost while clients talk across the
IDCs, the other one takes its place, and then the same the other way round. No connection is lost,
and no message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imctl.engines.binaries import Program
from imctl.reconcile.cores import TAKES_OVER_MS
from imctl.testing.cast import Cast, Couple
from imctl.testing.cluster import engines
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
            assert connections(cast)[stood:] == [], "a connection did not survive"
            assert cast.refusals == []
            await cast.judge()
