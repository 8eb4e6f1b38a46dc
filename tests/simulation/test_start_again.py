"""An IDC that starts again asks the others in as few round trips as it can, and starts again
wherever it was in its start."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from imcore.region.model import Region
from services.sim.testing import Stage, play

ROUND_TRIP_S = 0.22  # from sin to the farther one of the others


@pytest.mark.parametrize("partitions", [4, 24])
def test_it_serves_as_soon_however_many_partitions_it_has(tmp_path: Path, partitions: int) -> None:
    async def script(stage: Stage) -> None:
        sin, loop = stage.world.machines["sin"], stage.world.loop
        await asyncio.sleep(3.0)  # every partition has records, and the others hold them
        sin.crash()
        began = loop.time()
        sin.start()
        await stage.until(lambda: sin.serving)
        assert loop.time() - began < 8 * ROUND_TRIP_S

    def edit(region: Region) -> Region:
        spec = region.spec.model_copy(update={"partitions": partitions})
        return region.model_copy(update={"spec": spec})

    play(tmp_path, script, edit)


def test_a_process_that_crashes_while_it_opens_its_kv_starts_again(tmp_path: Path) -> None:
    """What of it was open is closed, as the kernel would have done."""

    async def script(stage: Stage) -> None:
        sin = stage.world.machines["sin"]
        sin.disk.faults.fsync_delay_ms = 100
        for step in range(20):
            sin.crash(power=True)
            sin.start()
            await asyncio.sleep(0.05 * step)
        sin.disk.faults.fsync_delay_ms = 0
        sin.crash(power=True)
        sin.start()
        await stage.until(lambda: sin.serving)

    play(tmp_path, script)
