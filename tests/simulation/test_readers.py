"""Who has read what, over IDCs and a failover: real nodes and SDKs over a simulated network."""

from __future__ import annotations

from pathlib import Path

from services.sdk import CursorMoved
from services.sim.testing import Device, Stage, play


def test_who_has_read_is_told_and_asked_across_idcs_and_a_failover(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        eve = await stage.device("eve", "p", "fra")
        chat = ann.client.direct("bob")
        sent = await ann.do(lambda client: client.send(chat, b"one"))
        team = await ann.do(lambda client: client.create_group(["bob", "eve"], "team"))
        said = await ann.do(lambda client: client.send(team, b"all"))
        for device in (bob, eve):
            await stage.until(lambda d=device: bool(d.client.view(team)), 5)  # type: ignore[misc]
        assert await ann.do(lambda client: client.read_counts(chat, sent.key)) == (0, 1)
        for conversation, key in ((chat, sent.key), (team, said.key)):
            await bob.do(lambda client, c=conversation, k=key: client.cursor(c, k))  # type: ignore[misc]
        read = [CursorMoved(chat, "bob", sent.key), CursorMoved(team, "bob", said.key)]
        await stage.until(lambda: ann.of(CursorMoved) == read, 5)
        assert eve.of(CursorMoved) == read[1:]
        assert await ann.do(lambda client: client.readers(chat, sent.key)) == (("bob",), ())
        assert await ann.do(lambda client: client.readers(team, said.key)) == (("bob",), ("eve",))

        # The IDC of two of them is lost for good; what was read before is known to the others.
        stage.world.machines["fra"].crash(power=True)
        await stage.until(lambda: ann.idc in ("iad", "sin"), 60)
        await stage.until(lambda: eve.idc in ("iad", "sin"), 60)
        assert await ann.do(lambda client: client.readers(team, said.key)) == (("bob",), ("eve",))
        await eve.do(lambda client: client.cursor(team, said.key))
        told = CursorMoved(team, "eve", said.key)
        await stage.until(lambda: all(told in each.of(CursorMoved) for each in (ann, bob)), 10)
        assert await bob.do(lambda client: client.readers(team, said.key)) == (("bob", "eve"), ())
        after = await bob.do(lambda client: client.send(chat, b"two"))
        await stage.until(lambda: _shows(ann, chat, after.key), 10)
        await ann.do(lambda client: client.cursor(chat, after.key))
        assert await bob.do(lambda client: client.read_counts(chat, after.key)) == (1, 0)

    play(tmp_path / "sim", script)


def _shows(device: Device, conversation: str, key: str) -> bool:
    return any(message.key == key for message in device.client.view(conversation))
