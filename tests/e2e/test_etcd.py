"""Three IDCs whose registries are etcds: one IDC is lost with its etcd and comes back, one etcd is
wiped under its IDC; nobody loses a message, and everybody votes again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from imctl.engines.binaries import Program
from imctl.testing.cast import Cast
from imctl.testing.lab import Lab, until

pytestmark = pytest.mark.e2e

VICTIM, WIPED = "fra", "sin"
VOTES = "the registry votes as store"


async def test_an_idc_with_its_etcd_is_lost_and_an_etcd_is_wiped(
    tmp_path: Path, etcd_program: Program
) -> None:
    async with Lab.up(tmp_path, engines=("etcd",)) as lab, Cast(lab, tmp_path) as cast:
        couples = await cast.couples(6, VICTIM, "iad", WIPED)
        async with cast.talking(couples):
            await asyncio.sleep(2)
            await cast.kill(VICTIM)
            states = {unit.name: unit.state for unit in lab.target.units()}
            assert states[VICTIM] == states[f"{VICTIM}-etcd"] == "gone"
            await lab.wait_state(VICTIM, "failed")
            await lab.start(VICTIM)
            await lab.all_active()

            etcd = f"{WIPED}-etcd"
            voted = lab.log(WIPED).count(VOTES)
            await lab.kill(etcd)
            lab.wipe(etcd)
            await asyncio.to_thread(lab.target.start, [etcd])

            async def joined() -> bool:
                said = lab.log(WIPED)
                return "abstains until" in said and said.count(VOTES) > voted

            await until(joined, 60, f"the new registry of {WIPED} does not join")
            # With the wiped one among them, so that its vote is the one that counts.
            await lab.kill("iad")
            await lab.wait_state("iad", "failed")
            await lab.start("iad")
            await lab.all_active()
        await cast.judge()
        await lab.converged()
