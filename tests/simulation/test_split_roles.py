"""An IDC whose gateways and route instances are processes beside its core, over a simulated
network: real nodes and SDKs, each process killed between two steps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.sdk import ConnectionChanged, Message
from services.sim.region import FRESH_FROM, SPLIT_EVERY, Layout, layout_of
from services.sim.run import run_seed
from services.sim.testing import Device, Stage, Talk, play
from services.sim.world import Beside, Machine
from services.split.core import FIRST_S
from services.split.ways import PREFIX

IDC = "fra"


def named(machine: Machine, name: str) -> list[Beside]:
    return [each for each in machine.beside if each.name.startswith(name)]


def by_route(machine: Machine) -> int:
    """How many gateways the core has by route instances."""
    fronts = machine.node.fronts if machine.node is not None else None
    return sum(len(route.fronts) for route in fronts.routes) if fronts is not None else 0


def got(device: Device) -> list[bytes]:
    return [event.content for event in device.of(Message)]


@pytest.mark.parametrize("routes", [0, 1, 2])
def test_no_process_but_the_gateways_takes_a_connection_with_it(
    tmp_path: Path, routes: int
) -> None:
    async def script(stage: Stage) -> None:
        machine = stage.world.machines[IDC]
        await stage.until(lambda: by_route(machine) == (2 if routes else 0))
        ann = await stage.device("ann", "phone", IDC)
        bob = await stage.device("bob", "phone", IDC)
        says = Talk(stage, ann, bob).says
        await says(b"all are there")
        for number, route in enumerate(named(machine, "route")):
            route.crash()
            await says(b"without %d of its route instances" % (number + 1))
        machine.crash(alone=True)
        await asyncio.sleep(1)
        machine.start()
        await says(b"after its core began again")
        for route in named(machine, "route"):
            route.start()
        await stage.until(lambda: by_route(machine) == (2 if routes else 0), 60)
        await says(b"by new ones")
        for device in (ann, bob):
            assert len(device.of(ConnectionChanged)) == 1
        for gateway in named(machine, "gateway"):
            gateway.crash()
        await stage.until(lambda: not ann.client.state.gateway and not bob.client.state.gateway, 20)
        for gateway in named(machine, "gateway"):
            gateway.start()
        await says(b"at new gateways, or another IDC")

    play(tmp_path, script, layout=Layout(split=True, routes=routes))


def test_a_route_instance_that_stands_still_is_no_way_for_longer_than_its_first_word(
    tmp_path: Path,
) -> None:
    """Seed 1000020: by its lease it is still there, and a gateway that had left the core for it
    waited until it went on."""

    async def script(stage: Stage) -> None:
        machine = stage.world.machines[IDC]
        (route,) = named(machine, "route")
        await stage.until(lambda: by_route(machine) == 2)
        route.crash()
        node = machine.node
        assert node is not None and node.fronts is not None
        await stage.until(lambda: by_route(machine) == 0 and len(node.gateways) == 2)
        await asyncio.sleep(5)  # until its lease has ended, and gateways have stopped to look often
        route.start()
        fronts = node.fronts
        store = machine.registry
        assert store is not None
        await stage.until(lambda: bool(fronts.routes and store._state.range(PREFIX)))
        assert route.owner is not None and by_route(machine) < 2
        stage.world.loop.pause(route.owner)
        away_s = 0.0
        for _ in range(60):
            await asyncio.sleep(0.1)
            away_s = away_s + 0.1 if len(node.gateways) < 2 else 0.0
            assert away_s < FIRST_S + 1
        stage.world.loop.resume(route.owner)
        await stage.until(lambda: by_route(machine) == 2, 60)

    play(tmp_path, script, layout=Layout(split=True, routes=1))


def test_of_fresh_seeds_one_in_three_has_roles_that_run_apart() -> None:
    layouts = [layout_of(FRESH_FROM + number) for number in range(36)]
    split = [layout for layout in layouts if layout.split]
    assert len(split) == 36 // SPLIT_EVERY
    assert {layout.routes for layout in split} == {0, 1, 2}
    assert {layout.ipconfs for layout in split} == {0, 2}
    assert any(layout.witness for layout in split)
    assert not any(layout_of(number).split for number in range(100))


def test_a_part_of_a_seed_with_roles_apart_meets_the_loss_of_each(tmp_path: Path) -> None:
    seed = next(n for n in range(FRESH_FROM, FRESH_FROM + 99) if layout_of(n).routes == 2)
    outcome = run_seed(seed, 8.0)
    assert not outcome.violated
    assert outcome.faults["crash beside"] + outcome.faults["pause beside"]
    assert outcome.operations > 200
    told = "\n".join(outcome.trace)
    assert "the front fra-gw1" in told and "is linked by" in told


def test_what_was_composed_later_is_not_accepted_before_an_earlier_place_is_known() -> None:
    """A device brings an outbox to an IDC that knows the first of its messages by a later place."""
    assert not run_seed(1_000_083, 16.0).violated
