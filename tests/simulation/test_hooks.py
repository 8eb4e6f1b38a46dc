"""Webhooks of several IDCs: who is told what, by real nodes over a simulated network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imcore.region.model import HookEvent, Region, Webhook
from services.sdk import GroupChanged
from services.sim.testing import Stage, play


def told(stage: Stage, kind: str, idc: str = "") -> list[dict[str, Any]]:
    """Each event once, as whoever receives them makes it by their ids."""
    found: dict[str, dict[str, Any]] = {}
    for body, _ in stage.world.posted.bodies:
        delivery = json.loads(body)
        for event in delivery["events"]:
            if event["event"] == kind and delivery["idc"].startswith(idc):
                found.setdefault(event["id"], event)
    return list(found.values())


def hooked(
    folder: Path, events: Sequence[HookEvent], **changed: dict[str, int]
) -> Callable[[Region], Region]:
    """The region with a webhook. ``changed``: fields of parts of its spec, by the part's name."""
    secret = folder / "secret"
    secret.write_bytes(b"s")
    hook = Webhook(name="all", url="http://hook", secret_file=str(secret), events=list(events))

    def edit(region: Region) -> Region:
        parts = {
            name: getattr(region.spec, name).model_copy(update=fields)
            for name, fields in changed.items()
        }
        spec = region.spec.model_copy(update={"webhooks": [hook], **parts})
        return region.model_copy(update={"spec": spec})

    return edit


def test_offline_push_asks_every_idc_and_a_restart_loses_nothing(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann = await stage.device("ann", "p", "fra")
        there = await stage.device("bob", "p", "iad")  # online, and not where ann is
        last = await stage.device("bob", "q", "sin")
        chat, away = ann.client.direct("bob"), ann.client.direct("eve")
        await ann.do(lambda client: client.send(chat, b"to who is online"))
        await ann.do(lambda client: client.send(away, b"to who is not"))
        await stage.until(lambda: len(told(stage, "message")) == 2)
        await stage.until(lambda: bool(told(stage, "offline_push")), 10)
        await asyncio.sleep(8)  # the grace too
        assert [event["uids"] for event in told(stage, "offline_push")] == [["eve"]]
        # Both were told by the IDC that accepted them, and devices by those that have them.
        assert len(told(stage, "message", "fra")) == 2
        assert {event["uid"] for event in told(stage, "presence", "iad")} == {"bob"}
        # The operator's server is down, the IDC restarts, both devices of bob are gone.
        stage.world.posted.status = 503
        await there.close()
        await ann.do(lambda client: client.send(chat, b"one is left"))
        await asyncio.sleep(2)
        stage.world.machines["fra"].crash()
        await asyncio.sleep(1)
        stage.world.posted.status = 200
        stage.world.machines["fra"].start()
        await stage.until(lambda: len(told(stage, "message")) == 3, 40)
        await asyncio.sleep(8)
        assert [event["uids"] for event in told(stage, "offline_push")] == [["eve"]]
        # A device whose connection is dead, though its session lives on for a while.
        await stage.until(lambda: ann.idc == "fra")
        last.vanish()
        await ann.do(lambda client: client.send(chat, b"nobody is left"))
        await asyncio.sleep(20)
        assert [event["uids"] for event in told(stage, "offline_push")] == [["eve"], ["bob"]]

    client = {"grace_ms": 3_000, "heartbeat_ms": 1_000}
    play(tmp_path / "sim", script, hooked(tmp_path, list(HookEvent), client=client))


def test_what_a_lost_idc_had_not_told_is_told_by_one_that_lives(tmp_path: Path) -> None:
    """From where the lost one had come to, by one of the others, and without its presence."""

    async def script(stage: Stage) -> None:
        ann = await stage.device("ann", "p", "fra")
        chat = ann.client.direct("eve")
        for number in range(5):
            await ann.do(lambda client, n=number: client.send(chat, b"%d" % n))  # type: ignore[misc]
        await stage.until(lambda: len(told(stage, "offline_push")) == 5, 20)
        await asyncio.sleep(3)
        stage.world.posted.status = 503
        await ann.do(lambda client: client.send(chat, b"told by nobody yet"))
        await asyncio.sleep(2)
        before = len(stage.world.posted.bodies)
        stage.world.machines["fra"].crash()
        await stage.until(lambda: ann.idc != "fra", 30)
        stage.world.posted.status = 200
        await stage.until(lambda: len(told(stage, "message")) == 6, 20)
        await stage.until(lambda: len(told(stage, "offline_push")) == 6, 20)
        await asyncio.sleep(10)
        after = [json.loads(body) for body, _ in stage.world.posted.bodies[before:]]
        late = [
            (event["event"], event["id"].partition("/")[0], each["idc"])
            for each in after
            for event in each["events"]
            if event["event"] != "presence"
        ]
        assert sorted(late) == [("message", "fra.1", "iad"), ("offline_push", "fra.1", "iad")]
        # It comes back with its disk, and tells it once more, under the same ids.
        stage.world.machines["fra"].start()
        await asyncio.sleep(20)
        assert len(told(stage, "message")) == len(told(stage, "offline_push")) == 6

    play(tmp_path / "sim", script, hooked(tmp_path, list(HookEvent)))


def test_who_has_muted_a_conversation_is_pushed_only_what_mentions_him(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        group = await ann.do(lambda client: client.create_group(["bob", "eve"]))
        await stage.until(lambda: len(bob.of(GroupChanged)) == 1, 5)
        await bob.do(lambda client: client.mute(group))
        await bob.close()
        await asyncio.sleep(3)
        await ann.do(lambda client: client.send(group, b"to all"))
        await ann.do(lambda client: client.send(group, b"bob!", mentions=["bob"]))
        await stage.until(lambda: len(told(stage, "offline_push")) == 2, 10)
        assert [event["uids"] for event in told(stage, "offline_push")] == [
            ["eve"],
            ["bob", "eve"],
        ]

    client = {"grace_ms": 1_000}
    play(tmp_path / "sim", script, hooked(tmp_path, [HookEvent.OFFLINE_PUSH], client=client))


def test_of_a_huge_group_only_who_is_mentioned_is_pushed_to_when_offline(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann = await stage.device("ann", "p", "fra")
        members = ["bob", "cid", "dan", "eve"]
        group = await ann.do(lambda client: client.create_group(members))
        await ann.do(lambda client: client.send(group, b"to nobody by name"))
        await ann.do(lambda client: client.send(group, b"eve!", mentions=["eve", "ann", "zoe"]))
        await stage.until(lambda: bool(told(stage, "offline_push")), 10)
        await asyncio.sleep(5)
        assert [event["uids"] for event in told(stage, "offline_push")] == [["eve"]]

    messages = {"push_group_members_max": 3}
    play(tmp_path / "sim", script, hooked(tmp_path, [HookEvent.OFFLINE_PUSH], messages=messages))
