"""The only IDC that serves is lost with its disk: its messages come back from their senders."""

from __future__ import annotations

from pathlib import Path

from services.sim.operating import Operator
from services.sim.region import Layout
from services.sim.testing import Stage, play


def test_what_the_last_idc_had_acked_comes_back_from_the_outboxes(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        fra, iad = (stage.world.machines[name] for name in ("fra", "iad"))
        ann = await stage.device("ann", "p", "fra")
        bob = await stage.device("bob", "p", "iad")
        chat = ann.client.direct("bob")
        iad.crash()
        await stage.until(lambda: bob.idc == "fra", 60)
        said = [b"%d" % number for number in range(20)]
        for number, content in enumerate(said):
            device = (ann, bob)[number % 2]
            await device.do(lambda client, c=content: client.send(chat, c))  # type: ignore[misc]

        fra.crash(power=True)
        fra.wipe()
        iad.start()
        operator = Operator(stage.world)  # who gives iad its traffic back
        running = stage.world.spawn(operator.owner, operator.run())
        await stage.until(lambda: ann.idc == bob.idc == "iad", 60)
        new = await stage.device("ann", "new", "iad")
        await new.do(lambda client: client.sync_history(chat, 50))
        shown = [message.content for message in new.client.view(chat)]
        assert sorted(shown, key=int) == said
        for device in (ann, bob):  # nothing twice, and in one order
            assert [message.content for message in device.client.view(chat)] == shown
        running.cancel()

    play(tmp_path, script, layout=Layout(("fra", "iad"), "sin"))
