"""An IDC that stands still under load for longer than the hold time, and goes on as if nothing had
happened: the others have declared it failed meanwhile and taken its clients."""

from __future__ import annotations

import asyncio

import pytest

from imcore.checker import check_file
from imcore.checker.availability import Availability
from imctl.testing.lab import until

pytestmark = pytest.mark.e2e

VICTIM, SURVIVORS = "fra", {"iad", "sin"}
RATE = 60.0
AFTER_S = 2.0  # of load on everything that has just changed


async def test_an_idc_that_is_paused_and_goes_on(stage, chat, figures) -> None:
    async with stage() as (lab, cast):
        couples = await cast.couples(8, VICTIM, *SURVIVORS)
        at_home = [couple.here for couple in couples]
        hold_s = lab.target.region.spec.safety.hold_ms / 1000
        loop = asyncio.get_running_loop()
        async with chat(couples, RATE):
            await asyncio.sleep(1.0)
            cast.recorder.fault(VICTIM, "kill")
            await asyncio.to_thread(lab.target.pause, VICTIM)
            cast.recorder.fault(VICTIM, "killed")
            began = loop.time()
            await lab.wait_state(VICTIM, "failed")

            async def moved() -> bool:
                return {actor.idc for actor in at_home} <= SURVIVORS

            await until(moved, 60, f"not every client has left {VICTIM}, which stands still")
            await asyncio.sleep(AFTER_S)
            paused_s = loop.time() - began
            assert paused_s > hold_s

            # It goes on with sockets full of what its clients sent before they left, and with a
            # policy in its memory that no longer holds.
            await asyncio.to_thread(lab.target.resume, VICTIM)
            await asyncio.sleep(AFTER_S)
            assert await moved(), f"a client went back to {VICTIM}, which is declared failed"
            await lab.all_active()

            async def home() -> bool:
                return {actor.idc for actor in at_home} == {VICTIM}

            await until(home, 60, f"the clients do not come back to {VICTIM}")
            await asyncio.sleep(AFTER_S)
        assert cast.refusals == []
        await cast.judge()
        await lab.converged()
        assert (await lab.status(VICTIM))["origin"] == f"{VICTIM}.1"

    availability = Availability()
    check_file(cast.path, [availability])
    (outage,) = availability.outages
    rto_us = outage.rto_us()
    assert rto_us is not None and len(outage.affected) == len(at_home)
    figures("seconds that the IDC stood still", f"{paused_s:.1f}")
    figures("RTO of an IDC that stands still", f"{rto_us / 1e6:.2f} s")
    figures("messages acked", len(cast.acked))
