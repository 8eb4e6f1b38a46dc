"""The imctl that began a move is killed at any moment: the controllers bring it to its end, and
another imctl sees it, or finds that nothing had begun."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import pytest

from imctl.testing.lab import Lab, until

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

RATE = 60.0
# Shares of the time that the move takes by itself here: before it asks, until after its end.
MOMENTS = [0.05 + 0.075 * number for number in range(14)]
MOVES = (("switchover", "fra", "iad", "--override", "anti-flap"), ("failback", "fra"))
BECOMES = {"switchover": "drained", "failback": "active"}


async def killed(lab: Lab, move: tuple[str, ...], after_s: float) -> bool:
    """Whether it had not ended by itself."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imctl", *move, "--yes", "--data", str(lab.target.data),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await asyncio.sleep(after_s)
    running = process.returncode is None
    if running:
        process.kill()
    await process.wait()
    return running


async def by_itself(lab: Lab, move: tuple[str, ...]) -> float:
    """How long this move takes that nobody kills, in seconds."""
    began = time.monotonic()
    status, out = await lab.imctl(*move, "--yes")
    assert status == 0, (move, out)
    assert await ended(lab, move[0])
    return time.monotonic() - began


async def policy(lab: Lab) -> dict[str, Any]:
    _, out = await lab.imctl("status", "-o", "json")
    found: dict[str, Any] = json.loads(out)["policy"]
    return found


async def ended(lab: Lab, verb: str) -> bool:
    """Another imctl waits for whatever is under way; whether the move has been made."""

    async def nothing_under_way() -> bool:
        return not (await policy(lab)).get("operation")

    await until(nothing_under_way, 60, f"the {verb} does not end")
    row = (await policy(lab))["idcs"]["fra"]
    return bool(row["state"] == BECOMES[verb] and row["ramp"] == 100)


async def test_moves_end_without_the_imctl_that_began_them(stage, chat, figures) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(6, "fra", "iad", "sin")
        kills = finished = 0
        async with chat(couples, RATE):
            takes_s = {move: await by_itself(lab, move) for move in MOVES}
            for moment in MOMENTS:
                for move in MOVES:
                    was_killed = await killed(lab, move, moment * takes_s[move])
                    kills += was_killed
                    if await ended(lab, move[0]):
                        finished += was_killed
                    else:  # killed before it had asked
                        await by_itself(lab, move)
        assert kills > 10 and finished > 5, "the moments missed the moves"
        assert cast.refusals == []
        await cast.judge()
        figures("imctl killed in a move", f"{kills} times, {finished} moves ended without it")
