"""A huge group over three IDCs, with real nodes and SDKs in simulated time: whatever it is told by,
everything is shown once, in one order, and it comes back to being told at once by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from imcore.region.model import Region
from services.im.heat import Level
from services.sdk import Client, Message
from services.sim.testing import Device, Stage, play

HOT = 30  # messages a second, of both senders together


def bounded(**limits: Any) -> Any:
    """Groups of more than three are huge, and a few deliveries a second are much."""

    def edit(region: Region) -> Region:
        spec = region.spec
        messages = spec.messages.model_copy(update={"push_group_members_max": 3})
        update = {"messages": messages, "limits": spec.limits.model_copy(update=limits)}
        return region.model_copy(update={"spec": spec.model_copy(update=update)})

    return edit


def levels(stage: Stage, group: str) -> set[Level]:
    nodes = [machine.node for machine in stage.world.machines.values()]
    return {node.im.diffusion.level(group) for node in nodes if node is not None}


async def say(device: Device, group: str, name: str, count: int, every_s: float) -> None:
    for number in range(count):
        content = f"{name} {number}".encode()
        await device.do(lambda client, content=content: client.send(group, content))  # type: ignore[misc]
        await asyncio.sleep(every_s)


def shown(device: Device, group: str) -> list[bytes]:
    return [message.content for message in device.client.view(group)]


async def hot_then_quiet(stage: Stage, level: Level) -> None:
    idcs = stage.world.layout.idcs
    devices = [await stage.device(f"u{n}", "p", idcs[n % len(idcs)]) for n in range(6)]
    first, other = devices[:2]

    async def create(client: Client) -> str:
        return await client.create_group([f"u{n}" for n in range(6)], "all")

    group = await first.do(create)
    await stage.until(lambda: all(len(shown(d, group)) == 0 for d in devices), 5)
    await asyncio.sleep(3)
    talks = [
        asyncio.ensure_future(say(device, group, name, 70, 2 / HOT))
        for device, name in ((first, "first"), (other, "other"))
    ]
    await asyncio.sleep(3)
    assert levels(stage, group) == {level}
    await asyncio.gather(*talks)
    await stage.until(lambda: all(len(shown(d, group)) == 140 for d in devices), 20)
    order = shown(first, group)
    for name in ("first", "other"):
        own = [content for content in order if content.startswith(name.encode())]
        assert own == [b"%s %d" % (name.encode(), number) for number in range(70)]
    for device in devices:
        assert shown(device, group) == order
        told = [m.key for m in device.of(Message) if m.conversation == group]
        assert len(told) == len(set(told)) == 140
    await stage.until(lambda: levels(stage, group) == {Level.AT_ONCE}, 30)
    before = stage.world.clock.now()
    await first.do(lambda client: client.send(group, b"quiet again"))
    await stage.until(lambda: shown(devices[3], group)[-1] == b"quiet again", 2)
    assert stage.world.clock.now() - before < 0.2  # of one window, in which it would have waited


@pytest.mark.parametrize(
    ("level", "merge", "signal"), [(Level.MERGED, 20, 1_000_000), (Level.SIGNALS, 10, 20)]
)
def test_a_hot_group_is_shown_once_and_in_order_and_recovers(
    tmp_path: Path, level: Level, merge: int, signal: int
) -> None:
    limits = {
        "group_merge_deliveries_per_s": merge,
        "group_signal_deliveries_per_s": signal,
        "group_window_ms": 500,
    }
    play(tmp_path / "sim", lambda stage: hot_then_quiet(stage, level), bounded(**limits))
