"""Three IDCs on Kafka, MirrorMaker 2, TiKV's protocol and etcd, under load: each kind of engine is
killed or paused somewhere, a whole IDC is lost with all of its own, and comes back. Nobody loses a
message, and all IDCs end with one state."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from imctl.engines.mm2_config import HEARTBEAT_S
from imctl.target.local import Local
from imctl.testing.cast import Cast
from imctl.testing.lab import Lab, until

pytestmark = pytest.mark.e2e

ENGINES = ("kafka", "tikv", "etcd")
VICTIM = "fra"


async def engine_dies(lab: Lab, name: str, seconds: float = 2.0) -> None:
    """kill -9, a while without it, and again."""
    await lab.kill(name)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(lab.target.start, [name])


async def engine_freezes(lab: Lab, name: str, seconds: float = 2.0) -> None:
    await asyncio.to_thread(lab.target.pause, name)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(lab.target.resume, name)


async def lost_and_back(lab: Lab, cast: Cast, idc: str) -> None:
    await cast.kill(idc)
    await lab.wait_state(idc, "failed")
    await lab.start(idc)


def child_of(lab: Lab, name: str) -> int:
    (keeper,) = (unit.pid for unit in lab.target.units() if unit.name == name)
    return int(Path(f"/proc/{keeper}/task/{keeper}/children").read_text())


def fill(filler: Path) -> None:
    """Until there is no room any more where it lies."""
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))


async def gone(lab: Lab, name: str) -> bool:
    return any(unit.name == name and unit.state == "gone" for unit in lab.target.units())


async def works(lab: Lab) -> None:
    """Every IDC serves, whatever the automatic failover made of the faults."""
    await lab.all_active()
    for idc in lab.idcs:
        await lab.wait_calm(idc, 180)  # a stuck MirrorMaker is given 90 to start, and starts again


@pytest.mark.nightly  # six minutes on two cores
async def test_every_engine_dies_or_freezes_and_an_idc_is_lost_with_its_own(
    every_engine: None, tmp_path: Path, figures: Callable[[str, object], None]
) -> None:
    async with Lab.up(tmp_path, engines=ENGINES) as lab, Cast(lab, tmp_path) as cast:
        couples = await cast.couples(6, *lab.idcs)
        async with cast.talking(couples):
            await asyncio.sleep(2)
            await engine_dies(lab, "iad-mm2")
            await engine_freezes(lab, "sin-pd", 1.0)
            await engine_freezes(lab, "fra-tikv", 1.0)
            await engine_dies(lab, "sin-etcd", 1.0)
            await works(lab)
            await engine_dies(lab, "iad-kafka", 1.0)
            await works(lab)

            await lost_and_back(lab, cast, VICTIM)
            await works(lab)
        await cast.judge()
        await lab.converged(60)
        for idc in lab.idcs:
            status = await lab.status(idc)
            assert status["log"]["durability"] == "flush" and status["kv"]["engine"] == "tikv"
            figures(f"lag into {idc}, ms", status["lag"])


@pytest.mark.nightly  # two minutes on two cores
async def test_links_are_cut_engines_freeze_and_a_brokers_disk_is_full_under_clients(
    every_engine: None, tmp_path: Path, mount_tmpfs: Callable[[Path, str], None]
) -> None:
    """What the test above does not do to them, a store that keeps its data too. No PD is killed:
    the mock of TiKV tells a new one nothing of its regions, as a real store does each minute."""

    def small(target: Local) -> None:
        mount_tmpfs(target.engine("fra-kafka").data, "400m")

    async with (
        Lab.up(tmp_path, engines=ENGINES, before_start=small) as lab,
        Cast(lab, tmp_path) as cast,
    ):
        couples = await cast.couples(6, *lab.idcs)
        async with cast.talking(couples):
            await asyncio.sleep(2)
            await lab.cut("iad", "sin")  # for its MirrorMakers too
            await asyncio.sleep(8)
            await lab.heal()
            await works(lab)
            await engine_freezes(lab, "iad-mm2", 5.0)
            await engine_freezes(lab, "sin-etcd")
            await engine_freezes(lab, "iad-kafka", 4.0)
            await works(lab)
            await engine_dies(lab, "sin-tikv")
            await works(lab)

            filler = lab.target.engine("fra-kafka").data / "filler"
            await asyncio.to_thread(fill, filler)
            await until(lambda: gone(lab, "fra-kafka"), 60, "the broker lives with a full disk")
            filler.unlink()
            await asyncio.to_thread(lab.target.start, ["fra-kafka"])
            await works(lab)
        await cast.judge()
        await lab.converged(60)


@pytest.mark.nightly
async def test_a_mirror_maker_that_is_stuck_is_started_again(
    every_engine: None, tmp_path: Path
) -> None:
    """One whose broker dies while it starts can end up with connectors that have no tasks: its
    process lives, and copies nothing. Not every try does that; a JVM that stands still always
    shows the same from outside."""
    async with Lab.up(tmp_path, engines=("kafka",)) as lab:

        async def copying() -> bool:
            flows = (await lab.status("iad"))["mirror"].values()
            return all(flow["worker_age_s"] < 2 * HEARTBEAT_S for flow in flows)

        for after_s in (9.0, 11.0, 13.0):
            await lab.kill("iad-mm2")
            await asyncio.to_thread(lab.target.start, ["iad-mm2"])
            await asyncio.sleep(after_s)
            await engine_dies(lab, "iad-kafka", 1.0)
            await until(copying, 180, "the MirrorMaker of iad does not copy")
            await lab.wait_calm("iad")
        jvm = child_of(lab, "iad-mm2")
        os.kill(jvm, signal.SIGSTOP)
        await lab.wait_alarm("iad", "no sign of life", 60)
        await lab.wait_calm("iad", 180)
        assert child_of(lab, "iad-mm2") != jvm
        assert "started again in 1 s: it gives no sign of life" in lab.log("iad-mm2")


async def test_a_store_that_is_wiped_is_filled_again_from_the_logs(
    every_engine: None, tmp_path: Path
) -> None:
    """Its IDC notices, and starts its roles again in the same process."""
    async with Lab.up(tmp_path, engines=("tikv",)) as lab, Cast(lab, tmp_path) as cast:
        couples = await cast.couples(6, *lab.idcs)
        async with cast.talking(couples):
            await asyncio.sleep(2)
            before = (await lab.status("sin"))["pid"]
            for name in ("sin-tikv", "sin-pd"):
                await lab.kill(name)
            lab.wipe("sin-tikv")  # with its PD
            for name in ("sin-pd", "sin-tikv"):  # a store ends when its PD does not serve yet
                await lab.start(name)

            async def again() -> bool:
                return lab.log("sin").count("sin serves as sin.1") >= 2

            await until(again, 120, "sin does not start again")
            await works(lab)
            assert (await lab.status("sin"))["pid"] == before
        await cast.judge()
        await lab.converged(60)


@pytest.mark.nightly  # 65 s; in CI the store is wiped, and moves are those of the integration tests
async def test_a_kv_moves_to_tikv_and_back_while_everybody_talks(
    every_engine: None, tmp_path: Path
) -> None:
    async with Lab.up(tmp_path) as lab, Cast(lab, tmp_path) as cast:
        couples = await cast.couples(6, *lab.idcs)
        async with cast.talking(couples):
            await asyncio.sleep(2)
            for engine in ("tikv", "embedded"):
                code, said = await lab.imctl("migrate", "kv", "--to", engine, "--yes", "-o", "json")
                assert code == 0, said
                for idc in lab.idcs:
                    status = await lab.status(idc)
                    assert status["kv"] == {"engine": engine, "move": None}, status["alarms"]
                    assert not [said for said in status["alarms"] if "region file" in said]
                await asyncio.sleep(1)
            await lost_and_back(lab, cast, VICTIM)
            await works(lab)
        await cast.judge()
        await lab.converged(60)
