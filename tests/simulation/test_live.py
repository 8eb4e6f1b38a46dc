"""Typing and presence between IDCs: real nodes and SDKs over a simulated network."""

from __future__ import annotations

import asyncio
from pathlib import Path

from imcore.proto import oplog_pb2 as oplog
from services.sdk import Client, Presence, Typing
from services.sim.testing import Stage, play


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
