"""Functions of the service over running IDCs: what was answered stands everywhere, although the
IDC that took it was lost in the middle."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from imctl.identity import ipconf_urls, token_for
from imctl.testing.cast import Cast
from imctl.testing.lab import Lab, until
from services.sdk import Client, MediaRef, NotConnected, Options

pytestmark = pytest.mark.e2e

VICTIM, SURVIVOR = "fra", "iad"
SECRET = b"canary-51e0"


def client(
    lab: Lab, cast: Cast, uid: str, device: str, idc: str, encryption_key: bytes | None = None
) -> Client:
    """Of a user who lives near this IDC."""
    target = lab.target
    return Client(
        token_for(target, uid, device, lab.clock),
        ipconf_urls(target),
        target.pki / "ca.pem",
        options=Options(client="lab/1", start_timeout_ms=60_000),
        forwarded_for=cast.addresses[idc],
        encryption_key=encryption_key,
    )


async def at_home(who: Client, idc: str) -> None:
    """An ipconf that has just started may not know every gateway yet: the IDC that took the client
    then hands it over."""

    async def holds() -> bool:
        return who.state.idc == idc

    await until(holds, 60, f"{who.device} does not come to {idc}")


async def shows(who: Client, chat: str, count: int) -> None:
    async def all_of_them() -> bool:
        return len(who.view(chat)) == count

    await until(all_of_them, 60, f"{who.device} does not show {count} messages")


def with_files(spec: dict[str, Any]) -> None:
    """A user sends 4 MB at once, and then so slowly that the loss comes in between."""
    spec["media"] = {"user_bytes_per_s": 400_000}


async def test_changes_outlive_the_idc_that_took_them(stage, figures, tmp_path) -> None:
    """Edit, recall and reactions before the loss, during the failover and after it. An upload that
    the loss cuts is done in another IDC; files of the lost one are had where there is a copy, and
    else once it is back. And an encrypted group, of which no server's file has a word, nor a byte
    of what was uploaded for it."""
    answered: list[bytes] = []
    files = [bytes([number]) * size for number, size in enumerate((300_000, 300_000, 5_000_000))]
    halfway = asyncio.Event()

    async def fetched(who: Client, ref: MediaRef) -> bytes:
        path: Path = tmp_path / ref.named.sha256
        await who.download(ref, path)
        return await asyncio.to_thread(path.read_bytes)

    async def edit_on(ann: Client, chat: str, key: str) -> None:
        """What is not answered is given up for the next one."""
        for number in range(1_000_000):
            with contextlib.suppress(NotConnected):
                await ann.edit(chat, key, b"edit %d" % number)
                answered.append(b"edit %d" % number)
            await asyncio.sleep(0.05)

    async with (
        stage(with_files) as (lab, cast),
        client(lab, cast, "ann", "phone", VICTIM, b"a" * 32) as ann,
        client(lab, cast, "bob", "phone", SURVIVOR, b"b" * 32) as bob,
    ):

        async def at_home() -> bool:
            return (ann.state.idc, bob.state.idc) == (VICTIM, SURVIVOR)

        # An IDC that has just begun to serve is in ipconf's answers a moment later.
        await until(at_home, 60, "the clients are not sent home")

        async def published() -> bool:
            return ann.keys_published and bob.keys_published

        await until(published, 60, "the devices' keys are not published")
        await lab.converged()  # in every IDC, or ann's would not know of bob's device
        chat = ann.direct("bob")
        team = await ann.create_group(["bob"], encrypted=True)
        secrets = [SECRET + b" %d" % number for number in range(4)]
        await ann.send(team, secrets[0])
        await shows(bob, team, 1)
        await bob.send(team, secrets[1])
        keys = [(await ann.send(chat, b"%d" % number)).key for number in range(4)]
        await shows(bob, chat, 4)
        await ann.edit(chat, keys[0], b"edited")
        await ann.recall(chat, keys[1])
        await ann.react(chat, keys[2], "heart")
        await bob.react(chat, keys[2], "+1")
        editing = asyncio.create_task(edit_on(ann, chat, keys[3]))
        copied, alone = [await ann.upload(file, "a/b", "x") for file in files[:2]]
        await ann.send(chat, b"", media=[copied])
        await shows(bob, chat, 5)
        assert bob.view(chat)[4].media == (copied,)
        assert await fetched(bob, copied) == files[0]
        hidden = await ann.upload(SECRET * 30_000, "a/b", "x", conversation=team)
        await ann.send(team, secrets[1], media=[hidden])
        await shows(bob, team, 3)
        assert bob.view(team)[2].media == (hidden,)
        assert await fetched(bob, hidden) == SECRET * 30_000  # bob's IDC has a copy now

        async def edited() -> bool:
            return len(answered) >= 3

        await until(edited, 60, "edits are not answered")

        def sent(done: int, size: int) -> None:
            """The loss comes before the upload goes on, however busy the machine is."""
            if done > 3_000_000 and not halfway.is_set():
                halfway.set()
                lab.target.kill(VICTIM)

        uploading = asyncio.create_task(ann.upload(files[2], progress=sent))
        await halfway.wait()
        before = len(answered)
        assert before
        await bob.react(chat, keys[2], "+1", on=False)
        await bob.react(chat, keys[2], "wow")
        await lab.wait_state(VICTIM, "failed")

        async def goes_on() -> bool:
            return ann.state.idc not in ("", VICTIM) and len(answered) > before + 5

        await until(goes_on, 60, "no edit is answered after the failover")
        editing.cancel()
        await asyncio.gather(editing, return_exceptions=True)
        await ann.edit(chat, keys[3], b"the last word")
        await ann.edit(chat, keys[0], b"edited again")
        await ann.send(team, secrets[2])
        await shows(bob, team, 4)
        await bob.send(team, secrets[3])
        assert await fetched(bob, hidden) == SECRET * 30_000
        assert await fetched(bob, copied) == files[0]
        elsewhere = await uploading
        assert elsewhere.named.idc != VICTIM
        assert await fetched(bob, elsewhere) == files[2]
        waiting = asyncio.create_task(fetched(bob, alone))
        figures("edits answered before and after the loss", f"{before}, {len(answered) - before}")

        assert not waiting.done()
        await lab.start(VICTIM)
        assert await waiting == files[1]
        await lab.converged()
        await lab.all_active()
        for device in (ann, bob):
            await shows(device, team, 5)
            contents = [message.content for message in device.view(team)]
            assert contents == [*secrets[:2], *secrets[1:]]
        held = [path.parent.name for path in lab.target.pki.parent.rglob("data.*")]
        assert held.count(hidden.named.sha256) >= 2
        for path in lab.target.pki.parent.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # it is replaced just now
                assert not path.is_file() or SECRET not in path.read_bytes(), path
        reactions = (("ann", "heart"), ("bob", "wow"))
        for idc in lab.idcs:
            for uid in ("ann", "bob"):
                async with client(lab, cast, uid, f"new-{idc}", idc) as fresh:
                    await shows(fresh, chat, 5)
                    await fresh.settled()
                    shown = fresh.view(chat)
                    assert [message.key for message in shown][:4] == keys
                    contents = [message.content for message in shown[:4]]
                    assert contents == [b"edited again", b"", b"2", b"the last word"], idc
                    assert fresh.changes(chat, keys[1]).recalled
                    assert fresh.changes(chat, keys[2]).reactions == reactions
        await lab.converged()
