"""What the simulation sees of the policy's way: documents and votes in the registries, of dead
ones too, and who has trouble with whom."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.control import controller, evaluate, failover, rules
from services.policy.document import IdcState
from services.sim.safety import Look
from services.sim.testing import Stage, play
from services.sim.truth import AFTER_S, Truth


async def watched(truth: Truth, seconds: float) -> list[Look]:
    before = len(truth.safety._looks)
    for _ in range(int(seconds * 4)):
        truth.look()
        await asyncio.sleep(0.25)
    return truth.safety._looks[before:]


def test_a_lost_idc_is_seen_to_be_accused_and_failed_by_the_rules(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        world = stage.world
        truth = Truth(world)
        looks = await watched(truth, 2.0)
        assert {*looks[-1].sites} == {"fra", "iad", "sin"}
        assert not looks[-1].troubled and not looks[-1].votes and looks[-1].calm
        first = max(truth.safety.committed)

        world.machines["fra"].crash(power=True)
        looks = await watched(truth, 10.0)
        assert ("iad", "fra") in looks[0].troubled and ("fra", "iad") not in looks[0].troubled
        assert "fra" not in looks[-1].sites
        assert any({("iad", "fra"), ("sin", "fra")} <= look.votes for look in looks)
        failed = [e for e, policy in truth.safety.committed.items() if e > first]
        assert truth.safety.committed[failed[0]].state("fra") is IdcState.FAILED

        world.machines["fra"].start()
        await watched(truth, 8.0)
        last = truth.safety.committed[max(truth.safety.committed)]
        assert last.state("fra") is IdcState.RECOVERING
        assert truth.safety.found == []

    play(tmp_path, script)


def test_what_a_process_has_done_is_looked_at_when_it_dies(tmp_path: Path) -> None:
    """Seed 500009: it had applied the rest since the last look, and its peer had been told."""

    async def script(stage: Stage) -> None:
        world = stage.world
        truth = Truth(world)
        truth.look()
        await asyncio.sleep(0.1)
        world.machines["fra"].crash(power=True)
        last = truth.safety._looks[-1]
        assert last.t == world.loop.time() and "fra" in last.sites

    play(tmp_path, script)


def test_what_is_not_calm_and_who_is_troubled(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        world = stage.world
        truth = Truth(world)

        def seen() -> Look:
            truth.look()
            return truth.safety._looks[-1]

        world.net.cut("fra", "iad")
        assert not seen().calm
        assert {("fra", "iad"), ("iad", "fra")} == seen().troubled
        world.net.heal("fra", "iad")
        assert seen().calm and seen().troubled  # what waited is still to come
        await asyncio.sleep(AFTER_S + 0.1)
        assert not seen().troubled
        world.net.link("sin", "fra").loss = 0.1
        assert {("fra", "sin"), ("sin", "fra")} == seen().troubled
        world.net.link("sin", "fra").loss = 0.0
        await asyncio.sleep(AFTER_S + 0.1)
        world.machines["sin"].disk.faults.full = True
        assert {("fra", "sin"), ("iad", "sin")} == seen().troubled
        world.machines["sin"].disk.faults.full = False
        owner = world.machines["sin"].owner
        assert owner is not None
        world.loop.pause(owner)
        assert not seen().calm and {"fra", "iad"} == {*seen().sites}
        assert {("fra", "sin"), ("iad", "sin"), ("sin", "fra"), ("sin", "iad")} == seen().troubled
        world.loop.resume(owner)

    play(tmp_path, script)


def test_a_failover_that_a_rule_should_have_refused_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One voter's word is taken for a majority's."""

    def by_anybody(votes: object, voters: object, hold_ms: int) -> list[str]:
        return failover.accused_by_majority(votes, ["fra"], hold_ms)  # type: ignore[arg-type]

    monkeypatch.setattr(controller, "accused_by_majority", by_anybody)
    table = {
        kind: tuple(rule for rule in each if rule not in (rules.votes_majority, rules.hold_time))
        for kind, each in evaluate._RULES.items()
    }
    monkeypatch.setattr(evaluate, "_RULES", table)

    async def script(stage: Stage) -> None:
        world = stage.world
        truth = Truth(world)
        await watched(truth, 1.0)
        for way in (("fra", "sin"), ("sin", "fra")):
            world.net.cut(*way)
        await watched(truth, 10.0)
        assert any(
            "unsafe: " in found and "votes-majority" in found for found in truth.safety.found
        )

    play(tmp_path, script)
