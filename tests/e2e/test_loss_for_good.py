"""An IDC is lost with its disk while acked messages are nowhere else but in their senders'
outboxes: they come back from there, and the IDC is built again from the others."""

from __future__ import annotations

import asyncio

import pytest

from imctl.testing import disklog

pytestmark = pytest.mark.e2e

UNMIRRORED_MIN = 500
VICTIM, SURVIVORS = "fra", ["iad", "sin"]


async def test_a_lost_disk_loses_no_acked_message(stage, figures) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(10, VICTIM, *SURVIVORS)

        await lab.isolate(VICTIM)
        cast.recorder.fault(VICTIM, "kill")
        await asyncio.gather(*(c.here.burst(c.conversation, 60) for c in couples))
        await lab.kill(VICTIM)
        cast.recorder.fault(VICTIM, "killed")
        held = {idc: (await lab.status(idc))["held"]["fra.1"] for idc in SURVIVORS}
        alone = disklog.above(lab.data(VICTIM), "fra.1", held) & cast.acked.keys()
        figures(f"acked messages held by {VICTIM} alone when its disk was wiped", len(alone))
        assert len(alone) >= UNMIRRORED_MIN
        lab.wipe(VICTIM)

        await lab.wait_state(VICTIM, "failed")
        await lab.heal()
        await cast.settled()
        assert {couple.here.idc for couple in couples} <= set(SURVIVORS)
        for idc, found in (await cast.found_at(SURVIVORS)).items():
            assert not cast.acked.keys() - found, f"{idc} lacks acked messages"

        await lab.start(VICTIM)
        assert (await lab.status(VICTIM))["origin"] == "fra.2"
        await asyncio.gather(*(c.here.burst(c.conversation, 5) for c in couples))
        await lab.converged()
        await lab.all_active()
        await cast.judge()
        await lab.converged()
