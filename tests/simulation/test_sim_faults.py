"""Faults that run beside each other: none ends another one's, and clocks that never stand alike."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from imcore.hlc import CLAMP_MS
from services.sim.faults import ANYWHERE, KINDS, LIGHT, LOSSES, SWITCHOVER, Faults
from services.sim.region import Layout
from services.sim.run import simulated
from services.sim.world import World


@pytest.fixture
def world() -> Iterator[World]:
    with simulated(1, Layout()) as made:
        yield made


def faults_of(
    world: World,
    said: Callable[[str, str], None] = lambda idc, what: None,
    settled: Callable[[], bool] = lambda: True,
) -> Faults:
    return Faults(world, said, lambda source, target: None, settled)


def play(world: World, *work: Awaitable[None]) -> None:
    async def all_of_it() -> None:
        await asyncio.gather(*work)

    world.loop.run_until_complete(all_of_it())


def test_what_takes_nobody_away_runs_beside_what_does(world: World) -> None:
    under_way: dict[str, None] = {}
    together: set[tuple[str, ...]] = set()

    def said(idc: str, what: str) -> None:
        if what.endswith(" is over"):
            under_way.pop(what.removesuffix(" is over"), None)
        elif what in KINDS or what in LIGHT:
            under_way[what] = None
            together.add(tuple(under_way))

    faults = faults_of(world, said)

    async def run() -> None:
        running = asyncio.ensure_future(faults.run())
        await asyncio.sleep(60)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    play(world, run())
    assert any(len(names) == 2 for names in together)
    for names in together:
        assert sum(name in KINDS for name in names) <= 1 >= sum(name in LIGHT for name in names)


def test_planned_moves_are_no_faults(world: World) -> None:
    faults = faults_of(world)
    faults.counts.update({SWITCHOVER: 3, "crash": 2})
    assert faults.broken == 2
    assert not KINDS.keys() & LIGHT.keys() and not LOSSES.keys() & (KINDS.keys() | LIGHT.keys())
    assert set(ANYWHERE) <= KINDS.keys()


def test_a_way_that_two_faults_cut_is_cut_until_both_are_over(world: World) -> None:
    faults, way = faults_of(world), ("near-iad", "iad")
    seen: list[bool] = []

    async def look() -> None:
        for _ in range(4):
            await asyncio.sleep(1.0)
            seen.append(world.net.link(*way).cut)

    play(world, faults._cut([way], 1.5), faults._cut([way], 2.5), look())
    assert seen == [True, True, False, False]


def test_packets_are_lost_both_ways_for_a_while(world: World) -> None:
    faults = faults_of(world)
    lossy: list[float] = []

    async def look() -> None:
        await asyncio.sleep(1.0)
        others = ("near-fra", "iad", "sin")
        lossy.extend(
            world.net.link(*way).loss
            for other in others
            for way in (("fra", other), (other, "fra"))
        )

    play(world, faults.loss("fra"), look())
    assert sorted(share > 0 for share in lossy) == [False] * 4 + [True] * 2
    assert not any(link.loss for link in world.net._links.values())


@pytest.mark.parametrize("loss", [Faults.wipe, Faults.two_losses])
def test_no_disk_is_lost_while_another_idc_lacks_its_traffic(
    world: World, loss: Callable[[Faults, str], Awaitable[None]]
) -> None:
    """Seed 854257880011: what fra alone had answered since iad failed was lost with it."""
    told: list[str] = []
    faults = faults_of(world, lambda idc, what: told.append(what), lambda: False)
    play(world, loss(faults, "fra"))
    assert not told


def test_in_the_end_all_is_mended(world: World) -> None:
    faults = faults_of(world)
    for machine in world.voters:
        machine.clock.skew_ms = 7
        machine.clock.offset_ms = 30_000
    for way in (("fra", "iad"), ("near-fra", "fra")):
        world.net.link(*way).loss = 0.3
        world.net.cut(*way)
    faults.heal()
    assert not any(link.loss or link.cut for link in world.net._links.values())
    assert [(each.clock.skew_ms, each.clock.offset_ms) for each in world.voters] == [(7, 0)] * 3


def test_clocks_stand_off_for_good_within_what_is_forgiven_and_beyond() -> None:
    alike, beyond = 0, 0
    for seed in range(1, 21):
        with simulated(seed) as world:
            faults_of(world).skew()
            skews = [abs(machine.clock.skew_ms) for machine in world.voters]
            assert len(set(skews)) > 1
            assert world.machines["fra"].clock.wall_ms() - world.clock.wall_ms() in (
                skews[0], -skews[0],
            )  # fmt: skip
            far = sum(skew > CLAMP_MS for skew in skews)
            assert far <= 1
            beyond += far
            alike += not far
    assert alike and beyond
