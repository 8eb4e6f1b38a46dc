"""Routing strategies of the region file: real nodes and SDKs over a simulated network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from imcore.region.model import Capacity, GatewayOrder, Region
from services.node.node import Node
from services.sim.testing import Device, Stage, play


def _with(region: Region, **routing: Any) -> Region:
    spec = region.spec
    routed = spec.routing.model_copy(update=routing)
    return region.model_copy(update={"spec": spec.model_copy(update={"routing": routed})})


def _node(stage: Stage, idc: str) -> Node:
    node = stage.world.machines[idc].node
    assert node is not None
    return node


def _gateways(stage: Stage, uid: str) -> list[str]:
    """Of the devices of this user that are online, as iad knows."""
    live = _node(stage, "iad").live
    return [route.gateway for route in live.routes(uid).values() if live.alive(route)]


def test_all_devices_of_a_user_are_at_the_gateway_that_the_hash_names(tmp_path: Path) -> None:
    """Also after the loss of their IDC, in another one; every message comes to all of them."""

    async def script(stage: Stage) -> None:
        users = [f"user-{number}" for number in range(5)]
        devices: dict[str, list[Device]] = {uid: [] for uid in users}
        for number in range(3):
            for uid in users:
                devices[uid].append(await stage.device(uid, f"d{number}", "fra"))
                await asyncio.sleep(1.5)  # ipconf hears of it

        def at() -> list[str]:
            found = [_gateways(stage, uid) for uid in users]
            return [each[0] if len(each) == 3 and len(set(each)) == 1 else "" for each in found]

        assert all(name.startswith("fra-") for name in at())
        assert len(set(at())) == 2
        stage.world.machines["fra"].crash(power=True)
        everybody = [device for each in devices.values() for device in each]
        await stage.until(lambda: all(each.idc not in ("", "fra") for each in everybody), 60)
        await stage.until(lambda: all(at()), 10)
        first, other = devices[users[0]][0], users[1]
        chat = first.client.direct(other)
        await first.do(lambda client: client.send(chat, b"hello"))
        shown = [*devices[users[0]], *devices[other]]
        await stage.until(lambda: all(len(each.client.view(chat)) == 1 for each in shown), 10)

    def edit(region: Region) -> Region:
        """So small that by their loads gateways would come in turn."""
        small = Capacity(sessions=60)
        idcs = [idc.model_copy(update={"capacity": small}) for idc in region.spec.idcs]
        spec = region.spec.model_copy(update={"idcs": idcs})
        return _with(region.model_copy(update={"spec": spec}), gateways=GatewayOrder.HASH)

    play(tmp_path / "sim", script, edit)


def test_of_a_large_conversation_every_idc_is_told_without_a_look(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        room: str = await ann.do(lambda client: client.create_group(["bob", "carl"], "room"))
        queue, told = _node(stage, "fra").signals["iad"], list[tuple[str, list[str]]]()
        add = queue.add

        def noted(conversation: str, uids: list[str], *rest: Any) -> None:
            told.append((conversation, list(uids)))
            add(conversation, uids, *rest)

        queue.add = noted  # type: ignore[method-assign,assignment]
        chat = ann.client.direct("bob")
        await ann.do(lambda client: client.send(chat, b"to one"))
        await ann.do(lambda client: client.send(room, b"to all"))
        await stage.until(lambda: bool(bob.client.view(room) and bob.client.view(chat)), 10)
        assert told == [(chat, ["bob"]), (room, [])]

    play(tmp_path / "sim", script, lambda region: _with(region, broadcast_members=2))


def test_members_are_found_of_a_conversation_that_is_not_in_memory(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        room: str = await ann.do(lambda client: client.create_group(["bob"], "room"))
        await stage.until(lambda: bool(bob.client.conversations()), 10)
        node = _node(stage, "iad")
        del node.im.partition(room).conversations._loaded[room]
        signalled = list[tuple[str, ...]]()
        node.state.signal = lambda uids, *rest: signalled.append(tuple(uids))  # type: ignore
        node._deliver([], room, {node.origin: 99})
        await stage.until(lambda: bool(signalled), 5)
        assert signalled == [("ann", "bob")]

    play(tmp_path / "sim", script)
