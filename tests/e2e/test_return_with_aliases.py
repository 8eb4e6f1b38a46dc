"""An IDC comes back with messages that only it had, and that their senders have sent again
elsewhere meanwhile: both copies are one message."""

from __future__ import annotations

import asyncio

import pytest

from imctl.testing import disklog

pytestmark = pytest.mark.e2e

ALIASES_MIN = 100
VICTIM, SURVIVORS = "fra", ["iad", "sin"]


@pytest.mark.nightly  # in CI each seed of the simulation makes dozens of aliases
async def test_messages_sent_again_elsewhere_are_shown_once_when_the_first_copies_return(
    stage, figures
) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(6, VICTIM, *SURVIVORS)

        await lab.isolate(VICTIM)
        cast.recorder.fault(VICTIM, "kill")
        await asyncio.gather(*(c.here.burst(c.conversation, 30) for c in couples))
        await lab.kill(VICTIM)
        cast.recorder.fault(VICTIM, "killed")
        held = {idc: (await lab.status(idc))["held"]["fra.1"] for idc in SURVIVORS}
        alone = disklog.above(lab.data(VICTIM), "fra.1", held) & cast.acked.keys()

        await lab.wait_state(VICTIM, "failed")
        await lab.heal()
        await cast.settled()
        # Answers to what is shown again, so that their order is judged too.
        await asyncio.gather(*(c.there.burst(c.conversation, 5) for c in couples))
        await cast.settled()
        before = await lab.hashes(SURVIVORS)

        await lab.start(VICTIM)
        assert (await lab.status(VICTIM))["origin"] == "fra.1"
        after = await lab.converged()
        assert after["iad"] != before["iad"]
        again = disklog.tags(lab.data("iad"), "iad.1") | disklog.tags(lab.data("sin"), "sin.1")
        returned = disklog.tags(lab.data("iad"), "fra.1") & disklog.tags(lab.data("sin"), "fra.1")
        aliases = alone & again & returned
        figures(f"messages that stand in two logs, {VICTIM}'s and a survivor's", len(aliases))
        assert len(aliases) >= ALIASES_MIN

        await lab.all_active()
        await cast.judge()
        await lab.converged()
