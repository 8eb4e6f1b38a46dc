"""Whose closed HLC holds the stable watermark back, as each IDC knows it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from imcore.words import Origin
from services.sim.testing import Stage, play


def test_they_follow_the_policy_and_the_incarnations(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        machines = stage.world.machines
        lost = machines["sin"]

        def voting() -> list[Origin]:
            nodes = [machines[name].node for name in ("fra", "iad")]
            found = [node.traffic.voting_origins() for node in nodes if node is not None]
            return sorted(found[0]) if found == [found[0]] * 2 else []

        await asyncio.sleep(5.0)  # ipconf hears of all of them
        await stage.device("ann", "phone", "sin")  # an IDC that nobody misses is not accused
        others = [Origin("fra", 1), Origin("iad", 1)]
        assert voting() == [*others, Origin("sin", 1)]
        lost.crash(power=True)
        lost.wipe()
        lost.start()  # under a new incarnation and the same policy: it is back too soon
        await stage.until(lambda: voting() == [*others, Origin("sin", 2)], 30.0)
        assert {each.node.traffic.epoch() for each in machines.values() if each.node} == {1}
        lost.crash(power=True)
        await stage.until(lambda: voting() == others, 60.0)

    play(tmp_path, script)
