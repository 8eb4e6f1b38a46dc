"""What no other test takes through the loss of an IDC: replies and mentions, typing, stickers by
code, logins of one kind, kicks. Each before it and after it, by real nodes and SDKs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from imcore.region.model import Devices, Region
from services.sdk import Client, ConnectionChanged, Message, Typing
from services.sim.testing import Device, Stage, play


def one_phone(region: Region) -> Region:
    spec = region.spec.model_copy(update={"devices": Devices(phone=1)})
    return region.model_copy(update={"spec": spec})


async def lose(stage: Stage, idc: str, *devices: Device) -> None:
    """For good; those who were there are elsewhere then."""
    stage.world.machines[idc].crash()
    await stage.until(lambda: all(each.idc not in ("", idc) for each in devices), 30)


async def _typing(client: Client, chat: str) -> None:
    client.typing(chat)


async def answered(stage: Stage, asks: Device, answers: Device, chat: str) -> None:
    """A question, and its answer with a sticker, which names the other one."""
    known, told = len(answers.of(Message)), len(asks.of(Typing))
    await asks.do(lambda client: client.send(chat, b"who?"))
    await stage.until(lambda: len(answers.of(Message)) == known + 1, 10)
    question = answers.of(Message)[-1]
    await answers.do(lambda client: _typing(client, chat))
    await stage.until(lambda: len(asks.of(Typing)) > told and asks.of(Typing)[-1].on, 5)
    await answers.do(
        lambda client: client.send(
            chat, b"you", reply=question.key, mentions=[question.uid], sticker="wave"
        )
    )
    await stage.until(lambda: asks.of(Message)[-1].content == b"you", 10)
    answer = asks.of(Message)[-1]
    assert (answer.reply, answer.mentions, answer.sticker) == (
        question.key,
        (question.uid,),
        "wave",
    )
    assert not asks.of(Typing)[-1].on


def test_answers_typing_and_stickers(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        chat = ann.client.direct("bob")
        await answered(stage, ann, bob, chat)
        await answered(stage, bob, ann, chat)
        await lose(stage, "fra", ann)
        await answered(stage, ann, bob, chat)
        await answered(stage, bob, ann, chat)
        late = await stage.device("bob", "new", "sin")
        await late.do(lambda client: client.sync_history(chat))
        view = [(each.content, each.reply, each.sticker) for each in late.client.view(chat)]
        assert view == [(m.content, m.reply, m.sticker) for m in bob.client.view(chat)]
        assert [content for content, _, _ in view] == [b"who?", b"you"] * 4

    play(tmp_path / "sim", script)


def test_logins_of_one_kind_and_kicks(tmp_path: Path) -> None:
    """Whom the lost IDC has put out stays out; one in it counts no more; and both go on."""

    async def script(stage: Stage) -> None:
        pad = await stage.device("ann", "pad", "iad", kind="tablet")
        old = await stage.device("ann", "old", "iad", kind="phone")
        web = await stage.device("ann", "web", "fra", kind="web")
        new = await stage.device("ann", "new", "fra", kind="phone")
        await stage.until(lambda: not old.idc, 5)
        await web.do(lambda client: client.kick("pad"))
        await stage.until(lambda: not pad.idc, 5)
        await lose(stage, "fra", web, new)
        await asyncio.sleep(5)
        assert (old.idc, pad.idc) == ("", "")
        newest = await stage.device("ann", "newest", "sin", kind="phone")
        await stage.until(lambda: not new.idc, 5)
        assert "one login too many" in new.of(ConnectionChanged)[-1].reason
        await web.do(lambda client: client.kick("newest"))
        await stage.until(lambda: not newest.idc, 5)
        await asyncio.sleep(8)
        assert [bool(each.idc) for each in (pad, old, new, newest, web)] == [False] * 4 + [True]

    play(tmp_path / "sim", script, one_phone)
