"""Full disks and damaged logs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from imctl.testing import disklog
from imctl.testing.cast import Cast, Couple
from imctl.testing.lab import Lab, until

pytestmark = pytest.mark.e2e

DISK = "48m"
LEFT_BYTES = 1 << 20


def long_hold(spec: dict[str, Any]) -> None:
    spec["safety"] = {"hold_ms": 3_600_000}


async def full_then_free(
    lab: Lab, cast: Cast, couples: list[Couple], free, last_pages: bool = False
) -> None:
    """``fra`` has no room: what it acked before stays, nothing is acked by it now, its clients'
    sends wait or go elsewhere, and it goes on once there is room. ``last_pages``: what is small
    may still fit into the pages that are left; then it is durable, and may be acked."""
    await lab.wait_alarm("fra", "the disk is full")
    await asyncio.sleep(0.5)  # an ack may be on its way that was given before
    before = set(cast.acked)
    sends = [asyncio.ensure_future(c.here.burst(c.conversation, 5)) for c in couples]
    await asyncio.sleep(1.5)
    meanwhile = cast.acked.keys() - before
    assert last_pages or not [tag for tag in meanwhile if cast.acked_at[tag] == "fra"]
    assert next(unit.state for unit in lab.target.units() if unit.name == "fra") == "running"
    await free()
    acked = await asyncio.gather(*sends)
    assert sum(map(len, acked)) == 5 * len(couples), cast.refusals
    await lab.wait_calm("fra")
    await lab.all_active()
    await asyncio.gather(*(c.here.burst(c.conversation, 5) for c in couples))
    await cast.judge()
    await lab.converged()


async def test_a_disk_that_is_full_by_the_fault_api(stage) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(6, "fra", "iad", "sin")
        sends = [asyncio.ensure_future(c.here.burst(c.conversation, 50)) for c in couples]
        await lab.disk_full("fra", True)
        await full_then_free(lab, cast, couples, lambda: lab.disk_full("fra", False))
        await asyncio.gather(*sends)


async def test_a_small_tmpfs_that_fills_up(stage, tmp_path, mount_tmpfs) -> None:
    disk = tmp_path / "deployment" / "fra" / "data"
    mount_tmpfs(disk, DISK)
    # Nobody takes its clients over, so that their sends are there still when there is room again.
    async with stage(long_hold) as (lab, cast):
        couples = await cast.couples(6, "fra", "iad", "sin")
        filler = disk / "filler"
        room = os.statvfs(disk)
        filler.write_bytes(bytes(room.f_bavail * room.f_frsize - LEFT_BYTES))
        sends = [
            asyncio.ensure_future(c.here.burst(c.conversation, 60, "x" * 8_000)) for c in couples
        ]

        async def free() -> None:
            assert not all(send.done() for send in sends)
            filler.unlink()

        await full_then_free(lab, cast, couples, free, last_pages=True)
        await asyncio.gather(*sends)


def fullest(data: Path, origin: str) -> tuple[int, Path]:
    """The partition with the longest last segment file, and that file."""
    lasts = {p: disklog.segments(data, origin, p)[-1] for p in disklog.partitions(data, origin)}
    return max(lasts.items(), key=lambda item: item[1].stat().st_size)


async def test_damaged_logs(stage) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(6, "fra", "iad", "sin")
        await asyncio.gather(*(c.here.burst(c.conversation, 20) for c in couples))
        await asyncio.gather(*(c.there.burst(c.conversation, 20) for c in couples))
        await lab.converged()
        data = lab.data("fra")

        async def at_fra() -> bool:
            return {couple.here.idc for couple in couples} == {"fra"}

        # A torn write at the end, of which nobody was told, and copies that lack their end: cut,
        # and the copies are filled from their origins again.
        await lab.kill("fra")
        _, own = fullest(data, "fra.1")
        last = list(disklog.records(data, "fra.1", int(own.parent.name)))[-1]
        with own.open("ab") as file:
            file.write(disklog.half_a_record_after(last))
        for origin in ("iad.1", "sin.1"):
            copy = fullest(data, origin)[1]
            os.truncate(copy, copy.stat().st_size - 300)
        await lab.start("fra")
        assert (await lab.status("fra"))["origin"] == "fra.1"
        assert lab.log("fra").count("a torn tail of") == 3
        await lab.converged()

        # A flipped byte below an end that was announced: no longer the same log.
        await lab.kill("fra")
        _, own = fullest(data, "fra.1")
        with own.open("r+b") as damaged:
            damaged.seek(own.stat().st_size // 2)
            byte = damaged.read(1)[0]
            damaged.seek(-1, os.SEEK_CUR)
            damaged.write(bytes([byte ^ 0xFF]))
        await lab.start("fra")
        assert (await lab.status("fra"))["origin"] == "fra.2"
        assert list(own.parent.glob("*.damaged"))
        await lab.converged()
        # Where its start took longer than the hold time its clients are elsewhere.
        await lab.all_active()
        await until(at_fra, 60, "the clients do not come back to fra")
        await asyncio.gather(*(c.here.burst(c.conversation, 20) for c in couples))
        await lab.converged()

        # Records missing at the end, as in an older copy of the disk: peers know better.
        await lab.kill("fra")
        own = fullest(data, "fra.2")[1]
        os.truncate(own, own.stat().st_size // 2)
        await lab.start("fra")
        assert (await lab.status("fra"))["origin"] == "fra.3"
        await lab.converged()

        await lab.all_active()
        await asyncio.gather(*(c.here.burst(c.conversation, 20) for c in couples))
        await cast.judge()
        await lab.converged()
