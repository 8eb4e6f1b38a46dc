"""Simulated devices: an application that dies lets go of its outbox, who waits for it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.loadgen.recorder import Deaf
from services.sdk import NotConnected, SendFailed
from services.sim.region import PLACES, layout_of
from services.sim.world import SimSession, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(1, tmp_path)
    yield made
    made.close()


def durable(world: World) -> SimSession:
    devices = (world.connect("ann", f"d{n}", "1.2.3.4", Deaf(), True) for n in range(100))
    return next(each for each in devices if each.durable)


def test_an_application_that_dies_leaves_its_outbox_to_the_next(world: World) -> None:
    async def body() -> None:
        session = durable(world)
        opening = asyncio.ensure_future(session.open())
        await asyncio.sleep(1.0)  # nobody serves
        sending = asyncio.ensure_future(session._done(session._client.send("d:ann:bob", b"x")))
        await asyncio.sleep(1.0)
        assert session.outbox == 1
        session.crash()
        for waiting in (opening, sending):
            with pytest.raises(NotConnected, match="ended"):
                await waiting
        with pytest.raises(NotConnected, match="does not run"):
            await session.send("d:ann:bob", b"y")
        again = world.connect("ann", session._client.device, "1.2.3.4", Deaf(), True)
        assert again.owner.name == f"{session.owner.name}.2"
        opening = asyncio.ensure_future(again.open())
        await asyncio.sleep(1.0)
        assert again.outbox == 1
        sending = asyncio.ensure_future(again._done(again._client.send("d:ann:bob", b"y")))
        await asyncio.sleep(1.0)
        assert again.outbox == 2
        await again.close()
        with pytest.raises(NotConnected):
            await opening
        with pytest.raises(SendFailed):
            await sending

    world.loop.run_until_complete(body())


def test_one_seed_in_four_has_two_idcs_and_a_witness() -> None:
    layouts = [layout_of(seed) for seed in range(8)]
    assert [layout.witness for layout in layouts] == 2 * ["", "", "", "sin"]
    assert all(layout.voters == PLACES for layout in layouts)
    assert layouts[3].home_of("2.0.0.1") == "fra" and layouts[0].home_of("2.0.0.1") == "sin"
