"""Every engine beside the IDCs of the local target: real processes, without the IDCs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from imcore.proto import peer_pb2 as pb
from imcore.runtime import SystemClock
from imctl import admin, startup
from imctl.engines.kafka import Server
from imctl.errors import Failed
from imctl.target import engines, process
from imctl.target.engines import KNOWN
from imctl.target.local import LINKPROXY, Local
from imctl.target.places import Places
from imctl.testing.lab import lab_region

UNITS = {f"{idc}-{kind}" for idc in ("fra", "iad", "sin") for kind in
         ("etcd", "kafka", "mm2", "pd", "s3", "tikv")}  # fmt: skip


@pytest.fixture
async def target(tmp_path: Path, every_engine: None) -> AsyncIterator[Local]:
    region = lab_region(tmp_path)
    target = Local.prepare(region, tmp_path / "data", True, SystemClock(), KNOWN)
    try:
        target.start([LINKPROXY])
        await startup.start_engines(target, lambda name, serving: None)
        yield target
    finally:
        await asyncio.to_thread(target.stop)


def states(target: Local) -> dict[str, str]:
    return {unit.name: unit.state for unit in target.units() if unit.name != LINKPROXY}


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_all_start_share_the_faults_of_their_idc_and_end(
    target: Local, figures: Callable[[str, object], None]
) -> None:
    assert states(target) == dict.fromkeys(UNITS, "running")
    await until(lambda: all(target.engine_serves(name) for name in UNITS))
    await the_mirrors_way_obeys_the_link(target)

    found = Local.open(target.data)
    found.pause("fra")
    await until(lambda: {n for n, s in states(found).items() if s == "paused"} == of("fra"))
    assert not found.engine("fra-kafka").healthy()
    found.resume("fra")
    await until(lambda: all(found.engine_serves(name) for name in of("fra")))

    found.kill("fra-pd")
    assert {name for name, state in states(found).items() if state == "gone"} == {"fra-pd"}
    with pytest.raises(Failed, match="fra-tikv is running"):
        found.wipe("fra-pd")
    found.kill("fra")
    assert {name for name, state in states(found).items() if state == "gone"} == of("fra")
    for kind in ("etcd", "kafka", "pd", "s3", "tikv"):
        assert any((target.data / "fra" / kind).iterdir())
    found.wipe("fra-tikv")
    assert not (target.data / "fra" / "pd").exists() and (target.data / "fra" / "kafka").exists()
    names = [name for name in found.engine_names() if name in of("fra")]
    for name in names:  # in the order of starting
        found.start([name])
        await startup.wait_serving(found, [name], lambda name, serving: None)
    found.kill("fra")
    found.wipe("fra")
    kinds = ("etcd", "kafka", "pd", "mm2", "s3")
    assert not any((target.data / "fra" / kind).exists() for kind in kinds)

    left = dict(found._run.processes)
    began = time.monotonic()
    killed = await asyncio.to_thread(found.stop)
    figures("seconds to stop two IDCs' engines", f"{time.monotonic() - began:.1f}")
    assert killed == []
    assert {name for name, one in left.items() if process.state(one) != "gone"} == set()


def of(idc: str) -> set[str]:
    return {name for name in UNITS if name.startswith(f"{idc}-")}


async def the_mirrors_way_obeys_the_link(target: Local) -> None:
    """What fra's MirrorMaker dials is iad's broker, and cut when the link is."""
    where = Places(target.data).at(engines.proxied("fra", "iad"))
    broker = Server(Path("/none"), where, "", target.pki, "iad-kafka", client="fra")
    await until(broker.healthy)
    await link(target, "drop")
    assert not await asyncio.to_thread(broker.healthy)
    await until(target.engine("iad-kafka").healthy)  # the cut is on the way, not at the broker
    await link(target, "pass")
    await until(broker.healthy)


async def link(target: Local, mode: str) -> None:
    fault = pb.LinkFault(from_idc="fra", to_idc="iad", mode=mode, both_ways=False)
    await admin.fault(target, LINKPROXY, pb.FaultRequest(link=fault))
