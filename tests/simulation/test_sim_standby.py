"""A second core of an IDC, which takes the place of the first: killed, told to stop, frozen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from services.sdk import ConnectionChanged
from services.sim.loop import Owner
from services.sim.region import FRESH_FROM, Layout, layout_of
from services.sim.run import run_seed
from services.sim.testing import Stage, Talk, play
from services.sim.world import Machine

IDC = "fra"


def test_it_takes_over_and_no_client_loses_its_connection(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        machine = stage.world.machines[IDC]
        ann = await stage.device("ann", "phone", IDC)
        bob = await stage.device("bob", "phone", IDC)
        talk = Talk(stage, ann, bob)
        await talk.says(b"by the first")
        killed: Callable[[Machine], None] = lambda machine: machine.crash(alone=True)  # noqa: E731
        for number, ends in enumerate((killed, Machine.stop, killed)):
            first, second = machine.owner, machine.waits
            ends(machine)
            await stage.until(partial(_serves, machine, second), 10)
            await talk.says(b"by the one that waited, %d" % number)
            machine.start()
            assert machine.waits not in (None, first, second)
            await asyncio.sleep(1)
        assert machine.taken_over == 3
        assert machine.node is not None and machine.node.origin.incarnation == 1
        for device in (ann, bob):
            assert len(device.of(ConnectionChanged)) == 1

    play(tmp_path, script, layout=Layout(split=True, standby=True))


def _serves(machine: Machine, core: Owner | None) -> bool:
    return machine.owner is core and machine.serving


def test_it_waits_for_one_that_stands_still(tmp_path: Path) -> None:
    """On segment files a lock held for life is the fence (rule 5)."""

    async def script(stage: Stage) -> None:
        machine = stage.world.machines[IDC]
        first = machine.owner
        assert first is not None
        stage.world.loop.pause(first)
        await asyncio.sleep(20)
        assert machine.owner is first and machine.taken_over == 0
        stage.world.loop.resume(first)
        await asyncio.sleep(1)
        assert machine.owner is first and machine.serving

    play(tmp_path, script, layout=Layout(split=True, standby=True))


def test_a_seed_has_some() -> None:
    seed = next(n for n in range(FRESH_FROM, FRESH_FROM + 99) if layout_of(n).standby)
    outcome = run_seed(seed, 8.0)
    assert not outcome.violated
    assert any("this one takes over" in line for line in outcome.trace)
