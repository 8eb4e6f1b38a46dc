"""Logs are cut everywhere, and an IDC whose disk is lost starts from a peer's snapshot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imctl.testing.lab import Lab, until

pytestmark = pytest.mark.e2e

VICTIM = "sin"
BODY = "x" * 400


def small_logs(spec: dict[str, Any]) -> None:
    spec["retention"] = {"log_bytes": 32_768, "segment_bytes": 4_096, "check_ms": 300}


async def cut_everywhere(lab: Lab) -> None:
    """Every IDC has cut its own log and its copies of the others' logs."""

    async def cut() -> bool:
        found = [(await lab.status(idc))["retention"] for idc in lab.idcs]
        return all(
            max(first) > 1 for retention in found for first in retention["first"].values()
        ) and all(any(s["safe"] for s in retention["snapshots"]) for retention in found)

    await until(cut, 60, "not every log is cut")


async def test_a_lost_disk_is_built_again_from_a_snapshot_when_logs_are_cut(stage) -> None:
    async with stage(edit=small_logs) as (lab, cast):
        couples = await cast.couples(8, *lab.idcs)
        for _ in range(2):
            await asyncio.gather(*(c.here.burst(c.conversation, 25, BODY) for c in couples))
            await asyncio.gather(*(c.there.burst(c.conversation, 15, BODY) for c in couples))
        await cut_everywhere(lab)

        cast.recorder.fault(VICTIM, "kill")
        await lab.kill(VICTIM)
        lab.wipe(VICTIM)
        await lab.wait_state(VICTIM, "failed")
        await asyncio.gather(*(c.here.burst(c.conversation, 5) for c in couples))
        await lab.start(VICTIM)

        status = await lab.status(VICTIM)
        assert status["origin"] == f"{VICTIM}.2"
        # It may have taken one of its own by now, and let go of the one that it started from.
        assert f"{VICTIM} starts from the snapshot" in lab.log(VICTIM)
        assert [s["safe"] for s in status["retention"]["snapshots"]][:1] == [True]
        assert max(status["retention"]["first"]["fra.1"]) > 1
        await lab.all_active()  # a failover that was under way may end a failback early
        await asyncio.gather(*(c.here.burst(c.conversation, 5) for c in couples))
        await cast.judge()
        await lab.converged()


async def test_a_retired_idc_holds_nothing_back_and_brings_its_tail_when_it_returns(stage) -> None:
    async with stage(edit=small_logs) as (lab, cast):
        couples = await cast.couples(6, VICTIM, *[idc for idc in lab.idcs if idc != VICTIM])
        survivors = [idc for idc in lab.idcs if idc != VICTIM]

        await lab.isolate(VICTIM)
        cast.recorder.fault(VICTIM, "kill")
        await asyncio.gather(*(c.here.burst(c.conversation, 10) for c in couples))
        await lab.kill(VICTIM)
        await lab.wait_state(VICTIM, "failed")
        await lab.heal()

        async def cut_past_the_victim() -> bool:
            await asyncio.gather(*(c.there.burst(c.conversation, 10, BODY) for c in couples))
            found = [(await lab.status(idc))["retention"] for idc in survivors]
            return all(max(f["first"][f"{idc}.1"]) > 60 for f in found for idc in survivors)

        async def all_wait() -> bool:
            """Each has a snapshot that the victim does not hold, and cuts nothing for it."""
            assert not await cut_past_the_victim()
            found = [(await lab.status(idc))["retention"]["waiting_for"] for idc in survivors]
            return found == [[VICTIM]] * len(survivors)

        await until(all_wait, 60, "the survivors do not wait for the IDC that is away", 0.3)
        for _ in range(4):
            assert not await cut_past_the_victim()
        # By now the survivors have each other's share of what the victim sent before the cut.
        held = (await lab.status("fra"))["held"][f"{VICTIM}.1"]
        await lab.change("retire", VICTIM)
        await until(cut_past_the_victim, 60, "not every log is cut")
        await cast.settled()

        await lab.start(VICTIM)
        status = await lab.status(VICTIM)
        assert status["origin"] == f"{VICTIM}.2"

        async def sealed() -> bool:
            return bool((await lab.status(VICTIM))["held"][f"{VICTIM}.1"] == held)

        await until(sealed, 60, "what lay above the seal is not published again")
        await lab.converged()
        await cast.judge(survivors)
        assert "published again" in lab.log(VICTIM)
        # They were above the seal when the logs were opened: never folded, so not folded out again.
        assert "folding it again without them" not in lab.log(VICTIM)
