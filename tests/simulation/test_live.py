"""Typing and presence between IDCs: real nodes and SDKs over a simulated network."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import Devices, Region
from services.control.controller import Controller
from services.sdk import Client, ConnectionChanged, Presence, Typing
from services.sim.testing import Stage, play
from services.sim.world import World


def test_typing_comes_to_the_other_idc_and_expires_by_itself(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        here = await stage.device("bob", "q", "fra")
        chat = ann.client.direct("bob")
        ends = {name: machine.node for name, machine in stage.world.machines.items()}
        for _ in range(20):  # of keys
            await ann.do(lambda client: _typing(client, chat))
        await stage.until(lambda: bool(bob.of(Typing)) and bool(here.of(Typing)), 1)
        assert bob.of(Typing) == here.of(Typing) == [Typing(chat, "ann", True)]
        assert ann.of(Typing) == []
        await stage.until(lambda: len(bob.of(Typing)) == 2, 7)
        assert bob.of(Typing)[1] == Typing(chat, "ann", False)
        await ann.do(lambda client: _typing(client, chat))
        await stage.until(lambda: len(bob.of(Typing)) == 3, 2)
        await ann.do(lambda client: client.send(chat, b"hello"))
        await stage.until(lambda: len(bob.of(Typing)) == 4, 2)
        assert not bob.of(Typing)[3].on
        # Nothing but the message, routes and ticks is in the log.
        node = ends["fra"]
        assert node is not None
        kinds = set()
        own = node.store.own()
        assert own is not None
        for number in range(own.partitions):
            for record in await own.read(number, 1, 1 << 20):
                kinds.add(oplog.Op.FromString(record.payload).WhichOneof("body"))
        assert kinds <= {"marker", "tick", "route", "message"}

    play(tmp_path / "sim", script)


async def _typing(client: Client, chat: str) -> None:
    client.typing(chat)


def test_who_is_online_is_told_across_idcs_also_when_one_is_lost(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        eve = await stage.device("eve", "web", "fra")
        [before] = await eve.do(lambda client: client.watch(["ann"]))
        assert before == Presence("ann", (), 0)
        ann = await stage.device("ann", "p", "iad", kind="phone")
        await stage.until(lambda: eve.of(Presence)[-1:] == [Presence("ann", ("phone",), 0)], 5)
        await stage.device("ann", "d", "sin", kind="desktop")
        both = Presence("ann", ("desktop", "phone"), 0)
        await stage.until(lambda: eve.of(Presence)[-1] == both, 6)
        await ann.close()
        await stage.until(lambda: eve.of(Presence)[-1].online == ("desktop",), 6)
        stage.world.machines["sin"].crash(power=True)
        await stage.until(lambda: eve.of(Presence)[-1].online == (), 30)
        assert eve.of(Presence)[-1].last_seen_ms > stage.world.clock.wall_ms() - 60_000
        told = len(eve.of(Presence))
        await asyncio.sleep(20)
        # The desktop connects to another IDC by itself, and nothing else is told.
        assert [each.online for each in eve.of(Presence)[told:]] in ([], [("desktop",)])

    play(tmp_path / "sim", script)


def test_one_login_too_many_ends_the_oldest_of_its_kind_in_whatever_idc(tmp_path: Path) -> None:
    def limited(region: Region) -> Region:
        spec = region.spec.model_copy(update={"devices": Devices(phone=1)})
        return region.model_copy(update={"spec": spec})

    async def script(stage: Stage) -> None:
        old = await stage.device("ann", "old", "fra", kind="phone")
        pad = await stage.device("ann", "pad", "fra", kind="tablet")
        new = await stage.device("ann", "new", "iad", kind="phone")
        await stage.until(lambda: not old.idc, 5)
        [*_, last] = old.of(ConnectionChanged)
        assert "one login too many" in last.reason
        await asyncio.sleep(8)  # it does not come back, and put the other one out
        assert (old.idc, new.idc, pad.idc) == ("", "iad", "fra")
        rows = await pad.do(lambda client: client.devices())
        assert [row[:4] for row in rows] == [
            ("old", "phone", False, "fra"),
            ("new", "phone", True, "iad"),
            ("pad", "tablet", True, "fra"),
        ]

    play(tmp_path / "sim", script, limited)


def test_who_is_kicked_is_out_in_every_idc_and_stays_out(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        web = await stage.device("ann", "web", "fra")
        there = await stage.device("ann", "there", "iad")
        here, bob = await stage.device("ann", "here", "fra"), await stage.device("bob", "p", "iad")
        await web.do(lambda client: client.kick("there"))
        await stage.until(lambda: not there.idc, 5)
        assert here.idc == "fra"
        again = await stage.device("ann", "there", "iad")  # a new client, by the same token
        await web.do(lambda client: client.kick())
        await stage.until(lambda: not again.idc and not here.idc, 5)
        await asyncio.sleep(8)
        assert [each.idc for each in (web, there, again, here, bob)] == ["fra", "", "", "", "iad"]
        # An operator, by whichever IDC.
        machine = stage.world.machines["sin"]
        assert machine.node is not None and machine.owner is not None
        await stage.world.spawn(machine.owner, machine.node.im.kick("ann", ""))
        await stage.until(lambda: not web.idc, 5)

    play(tmp_path / "sim", script)


def test_who_came_and_went_while_an_idc_took_no_writes_is_known_everywhere_afterwards(
    tmp_path: Path,
) -> None:
    async def script(stage: Stage) -> None:
        world = stage.world
        eve = await stage.device("eve", "web", "iad")
        bob = await stage.device("bob", "p", "fra", kind="phone")
        await stage.until(lambda: _watched_now(world, "iad", "bob") == ("phone",), 5)
        disk = world.machines["fra"].disk
        disk.faults.full = True
        await asyncio.sleep(1)
        ann = await stage.device("ann", "p", "fra", kind="phone")
        kicked = await stage.device("cid", "p", "fra", kind="phone")
        await bob.close()
        machine = world.machines["sin"]
        assert machine.node is not None and machine.owner is not None
        await world.spawn(machine.owner, machine.node.im.kick("cid", ""))
        disk.faults.full = False
        await stage.until(lambda: _watched_now(world, "iad", "ann") == ("phone",), 10)
        await stage.until(lambda: not kicked.idc, 5)
        found = await eve.do(lambda client: client.watch(["ann", "bob", "cid"]))
        assert [row.online for row in found] == [("phone",), (), ()] and ann.idc == "fra"

    play(tmp_path / "sim", script)


def test_an_idc_that_is_built_again_does_not_revive_the_routes_of_its_earlier_life(
    tmp_path: Path,
) -> None:
    async def script(stage: Stage) -> None:
        world = stage.world
        eve = await stage.device("eve", "web", "iad")
        ann = await stage.device("ann", "p", "fra", kind="phone")
        online = Presence("ann", ("phone",), 0)
        await stage.until(lambda: _watched_now(world, "iad", "ann") == ("phone",), 5)
        lost = world.machines["fra"]
        ann.vanish()
        lost.crash(power=True)
        lost.wipe()
        lost.start()
        await stage.until(lambda: lost.serving, 60)
        await asyncio.sleep(5)
        [found] = await eve.do(lambda client: client.watch(["ann"]))
        assert found != online

    play(tmp_path / "sim", script)


def test_an_idc_does_not_serve_before_it_knows_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []
    read = Controller._read_policy

    async def read_unless_held(controller: Controller) -> None:
        if controller.own not in held:
            await read(controller)

    async def script(stage: Stage) -> None:
        machine = stage.world.machines["fra"]
        machine.crash(power=True)
        (machine.folder / "policy.json").unlink()
        held.append("fra")
        machine.start()
        await asyncio.sleep(15)
        assert not machine.serving
        held.clear()
        await stage.until(lambda: machine.serving, 2)

    monkeypatch.setattr(Controller, "_read_policy", read_unless_held)
    play(tmp_path / "sim", script)


def _watched_now(world: World, idc: str, uid: str) -> tuple[str, ...]:
    node = world.machines[idc].node
    assert node is not None
    return tuple(
        route.kind
        for route in node.routes.routes(uid).values()
        if node.traffic.usable(route.origin.idc, route.gateway)
    )
