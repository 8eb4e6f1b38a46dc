"""Encrypted conversations between IDCs, one of which is lost in the middle: real nodes and SDKs
over a simulated network, and a word that must be nowhere on the disks of the servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from imcore.errors import Code
from services.sdk import Changed, Client, IdentitySeen, NotConnected, SendFailed
from services.sdk.sealing import FRESH_S
from services.sim.testing import Device, Stage, play

KEY = b"k" * 32
CANARY = b"canary-7f3a"


async def lose(stage: Stage, idc: str, devices: Iterable[Device]) -> None:
    stage.world.machines[idc].crash(power=True)
    await stage.until(lambda: all(device.idc not in ("", idc) for device in devices), 60)


def shown(device: Device, conversation: str) -> list[tuple[bytes, str]]:
    """What its view says, and why it does not."""
    return [(m.content, m.undecryptable) for m in device.client.view(conversation)]


def test_a_direct_conversation_of_several_devices_through_the_loss_of_an_idc(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(stage: Stage) -> None:
        ann = await stage.device("ann", "phone", "fra", encryption_key=KEY)
        tab = await stage.device("ann", "tab", "sin", encryption_key=KEY)
        bob = await stage.device("bob", "phone", "iad", encryption_key=KEY)
        plain = await stage.device("bob", "old", "iad")  # without a key
        talk = ann.client.direct("bob")
        await ann.do(lambda client: client.send(talk, b"before"))
        await ann.do(lambda client: client.encrypt(talk))
        said = [b"before"]

        async def say(device: Device, text: bytes) -> str:
            said.append(CANARY + text)
            sent = await device.do(lambda client: client.send(talk, CANARY + text))
            return sent.key

        first = await say(ann, b" one")
        everybody = (ann, tab, bob)

        async def alike() -> None:
            want = [(text, "") for text in said]
            await stage.until(lambda: all(shown(d, talk) == want for d in everybody), 20)

        await alike()
        await say(bob, b" two")
        await alike()
        reply = await tab.do(
            lambda client: client.send(talk, CANARY + b" three", reply=first, mentions=["bob"])
        )
        said.append(CANARY + b" three")
        await alike()
        [answer] = [m for m in bob.client.view(talk) if m.key == reply.key]
        assert (answer.reply, answer.mentions, answer.encrypted) == (first, ("bob",), True)
        with pytest.raises(SendFailed) as refused:
            await plain.do(lambda client: client.send(talk, b"in plain text"))
        assert refused.value.code == Code.ENCRYPTED_ONLY
        # The lost IDC has acked what no other one holds: the outbox brings it, as it was.
        for other in ("iad", "sin"):
            stage.world.net.cut("fra", other)
            stage.world.net.cut(other, "fra")
        for number in range(5):
            await say(ann, b" %d" % number)
        await lose(stage, "fra", [ann, tab, bob, plain])
        await say(ann, b" after")
        await say(bob, b" four")
        await alike()
        await ann.do(lambda client: client.edit(talk, first, CANARY + b" edited"))
        said[1] = CANARY + b" edited"
        await alike()
        assert (await bob.do(lambda client: client.conversation_list()))[0].last is not None
        # A device that comes later reads nothing of before, and everything from then on.
        new = await stage.device("bob", "new", "sin", encryption_key=KEY)
        await new.do(lambda client: client.sync_history(talk, 100))
        assert (b"before", "") in shown(new, talk)
        closed = [m for m in new.client.view(talk) if m.encrypted]
        assert {m.undecryptable for m in closed} == {"no_key"}
        await asyncio.sleep(FRESH_S)  # until ann asks again who is there
        await say(ann, b" for the new one too")
        await alike()
        await stage.until(lambda: shown(new, talk)[-1] == (said[-1], ""), 20)
        assert {m.undecryptable for m in plain.client.view(talk)} == {"", "no_encryption"}
        assert not await _found(bob, "canary") and await _found(bob, "before")
        devices = {(e.uid, e.device) for e in ann.of(IdentitySeen)}
        assert devices == {("ann", "tab"), ("bob", "phone"), ("bob", "new")}

    play(tmp_path / "sim", script)
    assert_nowhere(tmp_path)
    assert any(b"before" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY.decode() not in caplog.text


def test_a_group_whose_members_come_and_go_through_the_loss_of_an_idc(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(stage: Stage) -> None:
        ann = await stage.device("ann", "phone", "fra", encryption_key=KEY)
        bob = await stage.device("bob", "phone", "iad", encryption_key=KEY)
        eve = await stage.device("eve", "phone", "sin", encryption_key=KEY)
        dan = await stage.device("dan", "phone", "sin", encryption_key=KEY)
        team = await ann.do(lambda client: client.create_group(["bob", "eve"], encrypted=True))
        assert (await bob.do(lambda client: client.group(team))).encrypted
        said: list[bytes] = []

        async def say(device: Device, text: bytes) -> None:
            said.append(CANARY + text)
            await device.do(lambda client: client.send(team, CANARY + text))

        async def read_by(*devices: Device, last: int) -> None:
            want = [(text, "") for text in said[-last:]]
            await stage.until(lambda: all(shown(d, team)[-last:] == want for d in devices), 20)

        for device in (ann, bob, eve, ann):
            await say(device, b" %d" % len(said))
        await read_by(ann, bob, eve, last=4)
        await ann.do(lambda client: client.remove(team, ["eve"]))
        await bob.do(lambda client: client.join(team, ["dan"]))
        await stage.until(lambda: len(shown(dan, team)) >= 4, 20)
        assert {why for _, why in shown(dan, team)} == {"no_key"}
        heard = len(shown(eve, team))
        await say(ann, b" after eve")
        await say(bob, b" for dan")
        await read_by(ann, bob, dan, last=2)
        await lose(stage, "fra", [ann, bob, dan])
        for device in (dan, ann, bob):
            await say(device, b" %d" % len(said))
        await read_by(ann, bob, dan, last=5)
        assert len(shown(eve, team)) == heard
        assert not eve.client.known_devices("dan")

    play(tmp_path / "sim", script)
    assert_nowhere(tmp_path)
    assert CANARY.decode() not in caplog.text


def test_a_device_that_is_killed_again_and_again_loses_nothing_and_repeats_no_step(
    tmp_path: Path,
) -> None:
    async def script(stage: Stage) -> None:
        rng = random.Random(5)
        bob = await stage.device("bob", "phone", "iad", encryption_key=KEY)
        ann = await stage.device("ann", "phone", "fra", encryption_key=KEY)
        talk = ann.client.direct("bob")
        await ann.do(lambda client: client.encrypt(talk))
        acked: list[bytes] = []

        async def say(device: Device, text: bytes) -> None:
            with contextlib.suppress(NotConnected, SendFailed):
                await device.do(lambda client: client.send(talk, text))
                acked.append(text)

        for number in range(12):
            words = [say(ann, CANARY + b" ann %d %d" % (number, at)) for at in range(4)]
            words.append(say(bob, CANARY + b" bob %d" % number))
            saying = asyncio.gather(*words)
            await asyncio.sleep(rng.choice([0, 0.001, 0.005, 0.02, 0.3]))
            if number % 3:
                ann.crash()
                ann = await stage.device("ann", "phone", "fra", encryption_key=KEY)
            else:
                bob.crash()
                bob = await stage.device("bob", "phone", "iad", encryption_key=KEY)
            await saying
        await stage.until(lambda: not ann.client.state.outbox and not bob.client.state.outbox, 20)
        await ann.do(lambda client: client.send(talk, CANARY + b" the last"))
        await stage.until(
            lambda: all(shown(d, talk)[-1:] == [(CANARY + b" the last", "")] for d in (ann, bob)),
            20,
        )
        for device in (ann, bob):
            assert {why for _, why in shown(device, talk)} == {""}
            found = [content for content, _ in shown(device, talk)]
            assert set(acked) <= set(found) and len(found) == len(set(found))

    play(tmp_path / "sim", script)
    assert_nowhere(tmp_path)


def test_an_idc_knows_whether_it_has_again_what_it_had(tmp_path: Path) -> None:
    """Seed 675922750401: one that had lost its disk knew the group, and not yet the keys of a
    member's device, which was left out."""

    async def script(stage: Stage) -> None:
        eve = await stage.device("eve", "phone", "sin", encryption_key=KEY)
        for _ in range(60):
            await eve.do(lambda client: client.send(client.direct("bob"), bytes(4_000)))
        fra = stage.world.machines["fra"]
        fra.crash(power=True)
        fra.disk.wiped()
        slow = stage.world.net.link("sin", "fra")
        slow.bytes_per_s = 20_000
        fra.start()
        await stage.until(lambda: fra.serving, 60)
        assert fra.node is not None and not fra.node.im.whole
        slow.bytes_per_s = 0
        await stage.until(lambda: fra.node is not None and fra.node.im.whole, 20)
        knows = await eve.do(lambda client: client.devices())
        assert [each.device for each in knows] == ["phone"]

    play(tmp_path / "sim", script)


def test_what_members_and_changed_devices_can_do_to_others(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        ann = await stage.device("ann", "phone", "fra", encryption_key=KEY)
        bob = await stage.device("bob", "phone", "iad", encryption_key=KEY)
        eve = await stage.device("eve", "phone", "sin")
        team = await ann.do(lambda client: client.create_group(["bob", "eve"]))

        async def garbage(client: Client) -> None:
            await client._sender.send(team, b"\xffgarbage", 0, 0, encrypted=True)[1]

        await eve.do(garbage)
        await stage.until(lambda: shown(ann, team) == shown(bob, team) == [(b"", "malformed")])
        await ann.do(lambda client: client.send(team, b"goes on in plain text"))
        await stage.until(lambda: shown(eve, team)[-1] == (b"goes on in plain text", ""))

        talk = ann.client.direct("bob")
        await bob.do(lambda client: client.send(talk, b"hello"))  # knows it as not encrypted
        await ann.do(lambda client: client.encrypt(talk))
        with pytest.raises(SendFailed) as refused:
            await bob.do(lambda client: client.send(talk, b"refused, once"))
        assert refused.value.code == Code.ENCRYPTED_ONLY
        await bob.do(lambda client: client.send(talk, CANARY))
        await stage.until(lambda: shown(ann, talk)[-1] == (CANARY, ""))
        bob.crash()
        (stage.world.scratch / "outboxes" / "bob.phone.db").unlink()  # as on another phone
        other = await stage.device("bob", "phone", "iad", encryption_key=b"o" * 32)
        await other.do(lambda client: client.send(talk, CANARY + b" again"))
        await stage.until(lambda: shown(ann, talk)[-1] == (b"", "identity_changed"))
        seen = ann.of(IdentitySeen)[-1]
        assert seen.changed and seen.fingerprint == other.client.fingerprint()
        with pytest.raises(SendFailed) as unknown:
            await ann.do(lambda client: client.send(talk, b"who are you"))
        assert unknown.value.code == "identity_changed"
        ann.client.trust("bob", "phone", seen.fingerprint)
        await stage.until(lambda: shown(ann, talk)[-1] == (CANARY + b" again", ""))
        assert [e.content for e in ann.of(Changed)] == [CANARY + b" again"]
        await ann.do(lambda client: client.send(talk, CANARY + b" welcome"))
        await stage.until(lambda: shown(other, talk)[-1] == (CANARY + b" welcome", ""))

    play(tmp_path / "sim", script)


async def _found(device: Device, words: str) -> list[bytes]:
    async def search() -> list[bytes]:
        return [row.content async for row in device.client.search(words)]

    return await device.do(lambda client: search())


def assert_nowhere(folder: Path) -> None:
    """On no server's disk, and in no outbox either."""
    for path in folder.rglob("*"):
        assert not path.is_file() or CANARY not in path.read_bytes(), path
