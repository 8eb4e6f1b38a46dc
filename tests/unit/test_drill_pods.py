"""Cut links of pods: who is told, that it is said again, and that it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as pb
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imctl import admin
from imctl.drill import pods as under_test
from imctl.drill.means import GatewaysLate
from imctl.drill.pods import PodMeans
from imctl.target.kubernetes import Kubernetes

ROOT = Path(__file__).parents[2]


class Told:
    """What the processes of IDCs are told; those in ``silent`` do not answer."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []
        self.asked: list[pb.FaultRequest] = []
        self.gone: set[str] = set()
        self.silent: set[str] = set()

    async def fault(self, target: object, name: str, request: pb.FaultRequest) -> str:
        if name in self.silent:
            raise Unavailable(name)
        self.asked.append(request)
        link = request.link
        self.said.append((name, f"{link.mode} {link.from_idc}-{link.to_idc}"))
        return "done"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    found = Told()
    monkeypatch.setattr(admin, "fault", found.fault)
    monkeypatch.setattr(admin, "repeated", found.fault)
    monkeypatch.setattr(under_test, "AGAIN_S", 0.01)
    return found


def means(told: Told, lasts_s: float = 60.0) -> PodMeans:
    region = load_region(ROOT / "regions" / "two-idc.yaml")
    target = SimpleNamespace(
        region=region,
        is_kept_down=lambda name, now: name in told.gone,
        units=lambda: [SimpleNamespace(name=idc.name, state="running") for idc in region.spec.idcs],
    )
    return PodMeans(cast(Kubernetes, cast(Any, target)), SystemClock(), lasts_s)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def cut(a: str, b: str, mode: str = "drop") -> pb.LinkFault:
    return pb.LinkFault(from_idc=a, to_idc=b, mode=mode, both_ways=True)


async def test_both_ends_are_told_again_and_again_until_it_heals(told: Told) -> None:
    pods = means(told)
    await pods.link(cut("fra", "dub"))
    assert told.said == [("fra", "drop fra-dub"), ("dub", "drop fra-dub")]
    told.silent.add("fra")  # one that does not hear it does not keep the other from it
    await eventually(lambda: told.said.count(("dub", "drop fra-dub")) > 2)
    told.silent.clear()
    await pods.link(cut("dub", "fra", "pass"))
    assert told.said[-2:] == [("fra", "pass dub-fra"), ("dub", "pass dub-fra")]
    count = len(told.said)
    await asyncio.sleep(0.05)
    assert len(told.said) == count


async def test_a_witness_is_not_told_and_who_is_gone_has_nothing_to_heal(told: Told) -> None:
    pods = means(told)
    await pods.link(cut("fra", "witness"))
    await pods.link(cut("fra", "witness", "pass"))
    assert told.said == [("fra", "drop fra-witness"), ("fra", "pass fra-witness")]
    told.gone.add("fra")
    await pods.link(cut("fra", "dub", "pass"))
    assert told.said[2:] == [("dub", "pass fra-dub")]


async def test_it_is_not_said_for_longer_than_a_fault_may_last(told: Told) -> None:
    await means(told, lasts_s=0.05).link(cut("fra", "dub"))
    await asyncio.sleep(0.15)
    count = len(told.said)
    await asyncio.sleep(0.05)
    assert len(told.said) == count


async def test_a_slow_link_is_said_again_too_and_heals(told: Told) -> None:
    pods = means(told)
    slow = pb.LinkFault(from_idc="fra", to_idc="dub", mode="pass", both_ways=True, delay_ms=400)
    await pods.link(slow)
    await eventually(lambda: told.asked.count(pb.FaultRequest(link=slow)) > 4)
    await pods.link(cut("fra", "dub", "pass"))
    count = len(told.asked)
    await asyncio.sleep(0.05)
    assert len(told.asked) == count


async def test_a_clock_and_a_disk_are_broken_for_as_long_as_a_fault_may_last(told: Told) -> None:
    """By the IDC's process, which ends it by itself: who has asked may be gone."""
    pods = means(told, lasts_s=60.0)
    await pods.clock("fra", 20_000)
    await pods.disk("dub", True, 40)
    clock, disk = (each.clock if each.HasField("clock") else each.disk for each in told.asked)
    assert clock == pb.ClockFault(offset_ms=20_000, lasts_ms=60_000)
    assert disk == pb.DiskFault(full=True, fsync_delay_ms=40, lasts_ms=60_000)
    assert [name for name, _ in told.said] == ["fra", "dub"]


@pytest.mark.parametrize("touched", [True, False])
async def test_gateways_are_waited_for_apart_and_for_some_time_only(
    told: Told, monkeypatch: pytest.MonkeyPatch, touched: bool
) -> None:
    ready = {"dub"}
    pods = means(told)

    async def statuses(target: object, names: list[str], timeout_s: float = 3.0) -> dict[str, Any]:
        return {name: {"serving": True, "gateways": []} for name in names}

    monkeypatch.setattr(admin, "statuses", statuses)
    monkeypatch.setattr(under_test, "UNTOUCHED_S", 0.05)
    monkeypatch.setattr(under_test, "GATEWAYS_S", 0.01)
    target = cast(Any, pods)._target
    target.starts_s = 0.3 if touched else 60.0
    target.gateways_serve = ready.__contains__
    target.rolling = lambda name: None
    target.names = lambda: ["fra", "dub", "witness"]
    target.engine_names = list
    target.fronts_of = target.ipconfs_of = lambda name: []
    target.routes_of = target.apart_of = lambda name: []
    target.check_alive = lambda names: None
    await pods.serving(["dub"], touched)
    with pytest.raises(GatewaysLate, match=r"^not all gateways of fra are ready$"):
        await pods.serving(["fra", "dub"], touched)
    ready.add("fra")
    await pods.serving(["fra", "dub"], touched)


def slowed(a: str, b: str, delay_ms: int, both_ways: bool = True) -> pb.LinkFault:
    return pb.LinkFault(
        from_idc=a, to_idc=b, mode="pass", both_ways=both_ways, delay_ms=delay_ms
    )  # fmt: skip


async def said_again(told: Told) -> set[tuple[str, str, str, int]]:
    """From now on: what, the link's ends, and how slow."""
    await asyncio.sleep(0.05)
    told.asked.clear()
    told.said.clear()
    await asyncio.sleep(0.05)
    return {
        (f.mode, f.from_idc + ("<->" if f.both_ways else "->") + f.to_idc, name, f.delay_ms)
        for f, (name, _) in zip((each.link for each in told.asked), told.said, strict=True)
    }


async def test_of_two_faults_of_a_link_the_last_one_is_said_again(told: Told) -> None:
    """Or each would undo the other every few seconds."""
    pods = means(told)
    await pods.link(slowed("fra", "dub", 400))
    await pods.link(slowed("dub", "fra", 50))
    assert await said_again(told) == {
        ("pass", "dub<->fra", idc, 50) for idc in ("fra", "dub")
    }  # fmt: skip
    await pods.link(cut("fra", "dub"))  # holds what the other would slow down
    assert {mode for mode, *_ in await said_again(told)} == {"pass", "drop"}
    await pods.link(cut("fra", "dub", "pass"))
    assert await said_again(told) == set()


async def test_of_two_that_share_one_way_the_former_keeps_the_other_way(told: Told) -> None:
    pods = means(told, lasts_s=1.0)
    await pods.link(slowed("fra", "dub", 400))
    await pods.link(slowed("fra", "dub", 50, both_ways=False))
    found = await said_again(told)
    assert found == {
        (mode, way, idc, delay)
        for mode, way, delay in (("pass", "dub->fra", 400), ("pass", "fra->dub", 50))
        for idc in ("fra", "dub")
    }
    await pods.link(slowed("dub", "fra", 60, both_ways=False))
    assert {(way, delay) for _, way, _, delay in await said_again(told)} == {
        ("fra->dub", 50), ("dub->fra", 60),
    }  # fmt: skip
    await asyncio.sleep(1.1)
    assert await said_again(told) == set()  # no longer than a fault may last
