"""How far an IDC's copies lag is told by the clock of most IDCs, not by a wrong one of its own: the
rules of planned moves rest on it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.sim.testing import Stage, play


@pytest.mark.parametrize("offset_ms", [-30_000, 30_000])
def test_a_lag_is_told_by_the_middle_clock(tmp_path: Path, offset_ms: int) -> None:
    lags: list[int] = []

    async def script(stage: Stage) -> None:
        world = stage.world
        node = world.machines["sin"].node
        assert node is not None
        world.machines["sin"].clock.offset_ms = offset_ms
        for cut in (False, True):
            for other in ("fra", "iad") if cut else ():
                world.net.cut(other, "sin")
                world.net.cut("sin", other)
            await asyncio.sleep(10.0)
            lags.append(node.status.facts()["lag"]["fra.1"]["ms"])

    play(tmp_path, script)
    near, far = lags
    assert near < 2_000
    assert 8_000 < far < 12_000
