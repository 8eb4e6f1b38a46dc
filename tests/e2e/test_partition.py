"""Links between IDCs are cut while all of them serve; after healing all hold the same."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from imctl.testing.cast import Cast, Couple
from imctl.testing.lab import Lab

pytestmark = pytest.mark.e2e

WRITES_MIN = 1_000
SENT = WRITES_MIN * 11 // 10  # a client that has to connect again may be counted at neither side
COUPLES = 10
LONG_S = 600.0
PAUSE_S = 2.0  # between the bursts of the long run

Figures = Callable[[str, object], None]


def long_hold(spec: dict[str, Any]) -> None:
    """So long that an IDC without a majority keeps its clients for the whole test."""
    spec["safety"] = {"hold_ms": 3_600_000}


async def both_write(
    cast: Cast, couples: list[Couple], count: int, figures: Figures, seconds: float = 0.0
) -> None:
    """Both ends of every conversation send at once; shows and checks how much each IDC took."""
    before = set(cast.acked)
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        await asyncio.gather(
            *(actor.burst(c.conversation, count) for c in couples for actor in (c.here, c.there))
        )
        if loop.time() >= end:
            break
        await asyncio.sleep(PAUSE_S)
    taken = Counter(cast.acked_at[tag] for tag in cast.acked.keys() - before)
    sides = sorted({actor.idc for c in couples for actor in (c.here, c.there)})
    for idc in sides:
        figures(f"writes at {idc} during the partition", taken[idc])
    for idc in sides:
        assert taken[idc] >= WRITES_MIN


async def heals_clean(lab: Lab, cast: Cast) -> None:
    await lab.heal()
    await cast.settled()
    await lab.converged()
    await cast.judge()
    await lab.converged()


async def test_two_idcs_cut_from_each_other(stage, figures) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(COUPLES, "iad", "sin")
        await cast.couples(1, "fra", "sin")
        await lab.cut("iad", "sin")
        await both_write(cast, couples, SENT // COUPLES, figures)
        # Neither is declared failed: the third reaches both, so no majority accuses one.
        assert [await lab.policy_state(idc) for idc in lab.idcs] == ["active"] * 3
        await heals_clean(lab, cast)


async def test_one_idc_cut_from_both_others(stage, figures) -> None:
    async with stage(long_hold) as (lab, cast):
        couples = await cast.couples(COUPLES, "sin", "iad", "fra")
        other = await cast.couples(COUPLES // 2, "iad", "fra")
        await lab.isolate("sin")
        hashes = await lab.hashes()
        await both_write(cast, couples, SENT // COUPLES * 2, figures)
        await asyncio.gather(*(c.here.burst(c.conversation, 10) for c in other))
        during = await lab.hashes()
        assert during["sin"] != during["fra"]
        assert during["sin"] != hashes["sin"]
        await heals_clean(lab, cast)


@pytest.mark.nightly
@pytest.mark.parametrize("isolated", [False, True], ids=["pair", "isolated"])
async def test_ten_minutes(stage, figures, isolated: bool) -> None:
    async with stage(long_hold) as (lab, cast):
        couples = await cast.couples(COUPLES, "sin", "iad")
        await (lab.isolate("sin") if isolated else lab.cut("iad", "sin"))
        await both_write(cast, couples, 5, figures, LONG_S)
        await heals_clean(lab, cast)
