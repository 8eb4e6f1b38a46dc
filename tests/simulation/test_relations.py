"""Friends, blocks and roles of groups between IDCs, one of which is lost in the middle: real nodes
and SDKs over a simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from imcore.errors import Code
from services.sdk import (
    Client,
    FriendChanged,
    Friends,
    GroupChanged,
    Message,
    RequestRefused,
    SendFailed,
)
from services.sim.testing import Device, Stage, play
from services.sim.world import World
from services.state.server import StateServer


async def refused(device: Device, work: Callable[[Client], Coroutine[Any, Any, Any]]) -> str:
    """The code that the doing of this device was refused with; empty: it was not."""
    try:
        await device.do(work)
    except (RequestRefused, SendFailed) as error:
        return error.code
    return ""


async def lose(stage: Stage, idc: str, *devices: Device) -> None:
    """The machine, for good; until these are served by the others."""
    stage.world.machines[idc].crash(power=True)
    await stage.until(lambda: all(device.idc not in ("", idc) for device in devices), 60)


async def alike(stage: Stage, conversation: str, idcs: tuple[str, ...]) -> None:
    """Until these IDCs hold the same of the group."""
    await stage.until(lambda: len({_rows(stage.world, idc, conversation) for idc in idcs}) == 1, 20)


def _rows(world: World, idc: str, name: str) -> tuple[object, ...]:
    node = world.machines[idc].node
    assert node is not None
    held = node.im.partition(name).conversations.get(name)
    return (held.name, held.members(), held.roles()) if held is not None else ()


def test_who_may_what_in_a_group_outlives_the_idc_that_took_it(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        carl = await stage.device("carl", "p", "iad")
        made: str = await ann.do(lambda client: client.create_group(["bob", "carl"], "team"))
        await ann.do(lambda client: client.set_role(made, "bob", "admin"))
        await stage.until(lambda: any(each.roles for each in bob.of(GroupChanged)[1:]), 5)
        assert await refused(carl, lambda client: client.remove(made, ["bob"])) == Code.FORBIDDEN
        await bob.do(lambda client: client.announce(made, "no meeting today"))
        await bob.do(lambda client: client.remove(made, ["carl"]))
        await stage.until(lambda: bool(carl.of(GroupChanged)), 5)
        assert carl.of(GroupChanged)[-1][:4] == (made, "bob", (), ("carl",))
        await lose(stage, "fra", ann)
        assert await refused(carl, lambda client: client.join(made)) == Code.FORBIDDEN

        async def contradict(client: Client) -> None:
            await client.rename(made, client.uid)
            await client.set_role(made, client.uid, "member")

        # Both do at once; the owner may not resign.
        codes = await asyncio.gather(*(refused(device, contradict) for device in (ann, bob)))
        assert codes == [Code.BAD_REQUEST, ""]
        await alike(stage, made, ("iad", "sin"))
        for device in (ann, bob):
            group = await device.do(lambda client: client.group(made))
            assert group[2:5] == (("ann", "bob"), "ann", ())
            said = group.announcement
            assert said is not None and said[:2] == ("no meeting today", "bob")
            assert group.name in ("ann", "bob")

    play(tmp_path / "sim", script)


@pytest.mark.parametrize("away_s", [15, 45])
def test_who_was_removed_while_away_learns_it_and_is_owed_nothing(
    tmp_path: Path, away_s: int
) -> None:
    """Within the grace of the session, or with a new one."""

    async def script(stage: Stage) -> None:
        net, idcs = stage.world.net, stage.world.machines
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        made: str = await ann.do(lambda client: client.create_group(["bob"], "team"))
        await stage.until(lambda: len(bob.of(GroupChanged)) == 1, 5)
        for idc in idcs:
            net.cut("near-iad", idc)
            net.cut(idc, "near-iad")
        await asyncio.sleep(1)
        await ann.do(lambda client: client.send(made, b"what bob is still to read"))
        await ann.do(lambda client: client.remove(made, ["bob"]))
        await ann.do(lambda client: client.send(made, b"and what not"))
        await asyncio.sleep(away_s)
        for idc in idcs:
            net.heal("near-iad", idc)
            net.heal(idc, "near-iad")
        await stage.until(lambda: len(bob.of(GroupChanged)) == 2, 30)
        assert bob.of(GroupChanged)[1][:4] == (made, "ann", (), ("bob",))
        await asyncio.sleep(10)
        sessions = [
            record
            for machine in idcs.values()
            if machine.node is not None and isinstance(machine.node.state, StateServer)
            for record in machine.node.state._table.of_users(["bob"])
        ]
        assert [record.owed for record in sessions if record.connected] == [{}]
        asked = sum(machine.node.im.counters.refused for machine in idcs.values() if machine.node)
        await asyncio.sleep(20)
        refused = sum(machine.node.im.counters.refused for machine in idcs.values() if machine.node)
        assert refused == asked
        # One who comes in again is shown all of it.
        await ann.do(lambda client: client.join(made, ["bob"]))
        await stage.until(lambda: len(bob.of(Message)) == 2, 20)
        assert [each[2:4] for each in bob.of(GroupChanged)[1:]] == [((), ("bob",)), (("bob",), ())]

    play(tmp_path / "sim", script)


def test_friends_and_blocks_outlive_the_idc_that_took_them(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        eve = await stage.device("eve", "p", "iad")
        await ann.do(lambda client: client.request_friend("bob"))
        await stage.until(lambda: bob.of(FriendChanged) == [FriendChanged("ann", "asking")], 5)
        await bob.do(lambda client: client.accept_friend("ann"))
        await stage.until(lambda: ann.of(FriendChanged)[-1] == FriendChanged("bob", "friend"), 5)
        await eve.do(lambda client: client.send(client.direct("ann"), b"hello"))
        await ann.do(lambda client: client.block("eve"))
        await lose(stage, "fra", ann)
        # Held by another IDC when they were answered, so by now known to all.
        assert await ann.do(lambda client: client.friends()) == Friends(("bob",), (), (), ("eve",))

        async def writes(client: Client) -> None:
            await client.send(client.direct("ann"), b"are you there?")

        assert await refused(eve, writes) == Code.BLOCKED
        assert await refused(bob, writes) == ""
        # Contradicting words at once, in two IDCs or in one.
        words = (
            ann.do(lambda client: client.remove_friend("bob")),
            bob.do(lambda client: client.block("ann")),
            ann.do(lambda client: client.request_friend("bob")),
        )
        await asyncio.gather(*words, return_exceptions=True)
        await stage.until(lambda: bob.of(FriendChanged)[-1] == FriendChanged("ann", "blocked"), 5)
        new = await stage.device("ann", "new", "sin")
        for device in (ann, new):
            found = await device.do(lambda client: client.friends())
            assert (found.friends, found.blocked) == ((), ("eve",))
        assert (await bob.do(lambda client: client.friends())).blocked == ("ann",)
        await ann.do(lambda client: client.block("eve", on=False))
        await asyncio.sleep(1)
        assert await refused(eve, writes) == ""

    play(tmp_path / "sim", script)
