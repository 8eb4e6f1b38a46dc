"""Lists of conversations, large groups and hot ones over IDCs, of which one is lost for good in the
middle: real nodes and SDKs over a simulated network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from imcore.region.model import Region
from services.im.heat import Level
from services.sdk import Client, Message, Summary
from services.sim.testing import Device, Stage, play


async def lose(stage: Stage, idc: str, *devices: Device) -> None:
    """The machine, for good; until these are served by the others."""
    stage.world.machines[idc].crash(power=True)
    await stage.until(lambda: all(device.idc not in ("", idc) for device in devices), 60)


def shown(device: Device, conversation: str) -> list[bytes]:
    return [message.content for message in device.client.view(conversation)]


async def listed(device: Device) -> dict[str, Summary]:
    found = await device.do(lambda client: client.conversation_list())
    return {row.conversation: row for row in found}


def test_the_list_and_its_unread_counts_outlive_the_idc_that_took_them(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        chat = ann.client.direct("bob")
        team = await bob.do(lambda client: client.create_group(["ann", "carl"], "team"))
        keys = []
        for number in range(5):
            content = b"%d" % number
            sent = await bob.do(lambda client, c=content: client.send(chat, c))  # type: ignore[misc]
            keys.append(sent.key)
            await bob.do(lambda client, c=content: client.send(team, c))  # type: ignore[misc]
        await stage.until(lambda: len(shown(ann, chat)) == len(shown(ann, team)) == 5)
        await ann.do(lambda client: client.cursor(chat, keys[2]))
        await bob.do(lambda client: client.recall(chat, keys[4]))
        await ann.do(lambda client: client.pin(team))
        await ann.do(lambda client: client.mute(chat))
        await stage.until(lambda: shown(ann, chat)[-1] == b"", 5)
        before = await listed(ann)
        assert {name: row.unread for name, row in before.items()} == {chat: 1, team: 5}
        assert (before[chat].muted, before[team].pinned, before[team].name) == (True, True, "team")

        await lose(stage, "fra", ann)
        assert await listed(ann) == before
        new = await stage.device("ann", "new", "sin")
        assert await listed(new) == before
        assert [row.conversation for row in await new.do(lambda c: c.conversation_list())] == [
            team, chat,
        ]  # fmt: skip
        # And it goes on: what is read and said now counts in both of those that are left.
        await new.do(lambda client: client.cursor(chat, keys[3]))
        await new.do(lambda client: client.pin(team, on=False))
        await bob.do(lambda client: client.send(chat, b"still there?"))
        await stage.until(lambda: shown(ann, chat)[-1] == b"still there?")

        async def agree() -> None:
            while True:
                each = [(await listed(device))[chat].unread for device in (ann, new)]
                if each == [1, 1]:
                    return
                await asyncio.sleep(0.1)

        await asyncio.wait_for(agree(), 10)
        rows = await listed(ann)
        last = rows[chat].last
        assert last is not None and last.content == b"still there?"
        assert not rows[team].pinned and rows[chat].muted

    play(tmp_path / "sim", script)


def test_a_large_group_made_in_pieces_outlives_the_idc_that_took_them(tmp_path: Path) -> None:
    others = [f"u{number:04}" for number in range(1_200)]

    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("u0007", "p", "iad")
        made: str = await ann.do(lambda client: client.create_group(others, "all of us"))
        await ann.do(lambda client: client.send(made, b"welcome"))
        await lose(stage, "fra", ann)  # each piece was answered once another IDC held it
        for device in (ann, bob):
            members = await device.do(lambda client: client.members(made))
            assert sorted(members) == ["ann", *others]
        await bob.do(lambda client: client.leave(made))
        await ann.do(lambda client: client.send(made, b"who is there?"))
        last = await stage.device("u1199", "p", "sin")
        await stage.until(lambda: shown(last, made)[-1:] == [b"who is there?"])
        assert "u0007" not in await last.do(lambda client: client.members(made))

    play(tmp_path / "sim", script)


def hot(region: Region) -> Region:
    """Groups of more than three are huge, and a few deliveries a second are much."""
    spec = region.spec
    messages = spec.messages.model_copy(update={"push_group_members_max": 3})
    limits: dict[str, Any] = {"group_merge_deliveries_per_s": 20, "group_window_ms": 500}
    update = {"messages": messages, "limits": spec.limits.model_copy(update=limits)}
    return region.model_copy(update={"spec": spec.model_copy(update=update)})


def test_a_hot_huge_group_goes_on_when_an_idc_is_lost_under_it(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        idcs = stage.world.layout.idcs
        devices = [await stage.device(f"u{n}", "p", idcs[n % len(idcs)]) for n in range(6)]
        uids = [f"u{n}" for n in range(6)]
        group: str = await devices[0].do(lambda client: client.create_group(uids, "all"))
        await stage.until(lambda: all(group in d.client.conversations() for d in devices))

        async def say(device: Device, name: bytes) -> None:
            for number in range(120):

                async def send(client: Client, content: bytes = b"%s %d" % (name, number)) -> None:
                    await client.send(group, content)

                await device.do(send)
                await asyncio.sleep(0.1)

        talks = [asyncio.ensure_future(say(devices[n], b"u%d" % n)) for n in (0, 1)]
        await asyncio.sleep(4)
        nodes = {name: stage.world.machines[name].node for name in idcs}
        levels = {node.im.diffusion.level(group) for node in nodes.values() if node is not None}
        assert levels == {Level.MERGED}
        lost = devices[0].idc
        await lose(stage, lost, *(device for device in devices if device.idc == lost))
        await asyncio.gather(*talks)
        await stage.until(lambda: all(len(shown(d, group)) == 240 for d in devices), 60)
        order = shown(devices[0], group)
        for name in (b"u0", b"u1"):
            own = [content for content in order if content.startswith(name)]
            assert own == [b"%s %d" % (name, number) for number in range(120)]
        for device in devices:
            assert shown(device, group) == order
            told = [m.key for m in device.of(Message) if m.conversation == group]
            assert len(told) == len(set(told)) == 240

    play(tmp_path / "sim", script, hot)
