"""Functions of the service over running IDCs: what was answered stands everywhere, although the
IDC that took it was lost in the middle."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from imctl.identity import ipconf_urls, token_for
from imctl.testing.cast import Cast
from imctl.testing.lab import Lab, until
from services.sdk import Client, NotConnected, Options

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


async def shows(who: Client, chat: str, count: int) -> None:
    async def all_of_them() -> bool:
        return len(who.view(chat)) == count

    await until(all_of_them, 30, f"{who.device} does not show {count} messages")


async def test_changes_outlive_the_idc_that_took_them(stage, figures) -> None:
    """Edit, recall and reactions before the loss, during the failover and after it; and an
    encrypted group, of which no server's disk or log has a word."""
    answered: list[bytes] = []

    async def edit_on(ann: Client, chat: str, key: str) -> None:
        """What is not answered is given up for the next one."""
        for number in range(1_000_000):
            with contextlib.suppress(NotConnected):
                await ann.edit(chat, key, b"edit %d" % number)
                answered.append(b"edit %d" % number)
            await asyncio.sleep(0.05)

    async with (
        stage() as (lab, cast),
        client(lab, cast, "ann", "phone", VICTIM, b"a" * 32) as ann,
        client(lab, cast, "bob", "phone", SURVIVOR, b"b" * 32) as bob,
    ):

        async def at_home() -> bool:
            return (ann.state.idc, bob.state.idc) == (VICTIM, SURVIVOR)

        # An IDC that has just begun to serve is in ipconf's answers a moment later.
        await until(at_home, 20, "the clients are not sent home")
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
        await asyncio.sleep(2.0)
        before = len(answered)
        assert before
        await lab.kill(VICTIM)
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
        await shows(bob, team, 3)
        await bob.send(team, secrets[3])
        figures("edits answered before and after the loss", f"{before}, {len(answered) - before}")

        await lab.start(VICTIM)
        await lab.converged()
        await lab.all_active()
        for device in (ann, bob):
            await shows(device, team, 4)
            assert [message.content for message in device.view(team)] == secrets
        for path in lab.target.pki.parent.rglob("*"):
            assert not path.is_file() or SECRET not in path.read_bytes(), path
        reactions = (("ann", "heart"), ("bob", "wow"))
        for idc in lab.idcs:
            for uid in ("ann", "bob"):
                async with client(lab, cast, uid, f"new-{idc}", idc) as fresh:
                    await shows(fresh, chat, 4)
                    await fresh.settled()
                    shown = fresh.view(chat)
                    assert [message.key for message in shown] == keys
                    contents = [message.content for message in shown]
                    assert contents == [b"edited again", b"", b"2", b"the last word"], idc
                    assert fresh.changes(chat, keys[1]).recalled
                    assert fresh.changes(chat, keys[2]).reactions == reactions
        await lab.converged()
