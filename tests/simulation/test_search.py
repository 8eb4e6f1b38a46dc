"""Search over IDCs and a failover: real nodes and SDKs over a simulated network."""

from __future__ import annotations

from pathlib import Path

from services.sdk import Client
from services.sim.testing import Stage, play


def test_a_search_that_an_idc_began_goes_on_in_another_one(tmp_path: Path) -> None:
    """Messages of both IDCs, a recalled and an edited one; fra is lost between two pages."""

    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        chat = ann.client.direct("bob")
        said = []
        for number in range(60):
            device = (ann, bob)[number % 2]
            content = b"lunch %d" % number
            sent = await device.do(lambda client, c=content: client.send(chat, c))  # type: ignore[misc]
            said.append((sent.key, content))
        for device in (ann, bob):
            await stage.until(lambda d=device: len(d.client.view(chat)) == 60, 10)  # type: ignore[misc]
        await ann.do(lambda client: client.recall(chat, said[2][0]))
        await bob.do(lambda client: client.edit(chat, said[3][0], b"dinner"))
        shown = [message.key for message in ann.client.view(chat)]
        expected = [key for key in shown[::-1] if key not in (said[2][0], said[3][0])]

        async def over_a_failover(client: Client) -> list[str]:
            found: list[str] = []
            async for row in client.search("LUNCH"):
                if len(found) == 10:
                    stage.world.machines["fra"].crash(power=True)
                found.append(row.key)
            return found

        assert await ann.do(over_a_failover) == expected
        assert ann.idc in ("iad", "sin")
        await bob.do(lambda client: client.send(chat, "明天吃午饭".encode()))
        await stage.until(lambda: len(ann.client.view(chat)) == 61, 10)
        assert await ann.do(lambda client: _uids(client, "午饭")) == ["bob"]
        assert await bob.do(lambda client: _uids(client, "dinner")) == ["bob"]

    play(tmp_path / "sim", script)


async def _uids(client: Client, words: str) -> list[str]:
    return [row.uid async for row in client.search(words)]
