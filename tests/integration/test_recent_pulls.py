"""Pulls that memory answers, over the real im role: what the KV would say, whatever happens."""

from __future__ import annotations

import asyncio
import random
from typing import Any, cast

import pytest

from imcore import frame
from imcore.convert import stamp_pb, vector_of
from imcore.errors import Code
from imcore.limits import PULLS_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, Vector
from services.im import keys, reads, server
from services.im.testing import KEYS, Idc, OpenIdc
from services.ports import Session

DIRECT = "d:ann:bob"
FRA, IAD = Origin("fra", 1), Origin("iad", 1)


async def pulled(idc: Idc, have: Vector) -> pb.PullOk:
    return (await idc.pull(idc.session("bob"), DIRECT, have)).pull_ok


async def same_as_stored(idc: Idc, have: Vector) -> bool:
    """Whether memory had it; what it says must be what the KV says."""
    counters = idc.im.pulls.counters
    before = counters.memory
    got = await pulled(idc, have)
    conversation = idc.im.partitions[0].conversations.get(DIRECT)
    assert conversation is not None
    wanted, more = await reads.pull(idc.kv, 0, conversation, have, 0, KEYS)
    assert list(got.entries) == wanted
    assert got.more == more
    assert vector_of(got.heads) == conversation.heads
    return counters.memory > before


async def several(idc: Idc, session: Session, *conversations: str) -> pb.Response:
    pulls = [pb.Pull(conversation=name) for name in conversations]
    return await idc.ask(session, pb.Request(pulls=pb.Pulls(pulls=pulls)))


async def test_pulls_of_several_conversations_are_answered_in_their_order(
    open_idc: OpenIdc,
) -> None:
    idc = await open_idc(others=())
    ann, bob = idc.session("ann"), idc.session("bob")
    for number in range(3):
        await idc.send(ann, DIRECT, number + 1, b"%d" % number)
    await idc.send(ann, "d:ann:eve", 1, b"not for bob")
    await idc.folded()
    answer = await several(idc, bob, "d:bob:carl", "d:ann:eve", DIRECT)
    assert answer.HasField("stamp")
    empty, refused, full = answer.pulls_ok.answers
    assert empty.pull_ok.conversation == "d:bob:carl" and not empty.pull_ok.entries
    assert refused.error.code == Code.FORBIDDEN
    assert [entry.message.content for entry in full.pull_ok.entries] == [b"0", b"1", b"2"]
    assert full.pull_ok == (await idc.pull(bob, DIRECT)).pull_ok
    for none_or_too_many in ((), (DIRECT,) * (PULLS_MAX + 1)):
        answer = await several(idc, bob, *none_or_too_many)
        assert answer.error.code == Code.BAD_REQUEST


async def test_of_many_pulls_those_are_answered_that_one_message_holds(open_idc: OpenIdc) -> None:
    idc = await open_idc(others=())
    bob = idc.session("bob")
    names = [f"d:bob:u{number:02}" for number in range(PULLS_MAX)]
    for name in names:
        for cid in range(1, 4):
            await idc.send(bob, name, cid, bytes([cid]) * 10_000)
    await idc.folded()
    left, rounds = names, 0
    while left:
        answer = await several(idc, bob, *left)
        assert answer.ByteSize() <= frame.MESSAGE_BYTES_MAX
        answers = answer.pulls_ok.answers
        assert [each.pull_ok.conversation for each in answers] == left[: len(answers)]
        assert all(len(each.pull_ok.entries) == 3 for each in answers)
        left, rounds = left[len(answers) :], rounds + 1
    assert 1_500_000 / frame.MESSAGE_BYTES_MAX < rounds < 10  # each is as full as it can be


async def test_pulls_that_take_long_are_answered_by_and_by(
    open_idc: OpenIdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    idc = await open_idc(others=())
    monkeypatch.setattr(server, "PULLS_S", 0.0)
    [answer] = (await several(idc, idc.session("bob"), DIRECT, "d:bob:carl")).pulls_ok.answers
    assert answer.pull_ok.conversation == DIRECT


OTHERS = ("again", "resend", "resend", "edit", "recall", "claim", "claim")


class Doings:
    """What may happen to a conversation, at random, in either IDC."""

    def __init__(self, fra: Idc, iad: Idc, rng: random.Random) -> None:
        self.idcs, self.rng, self.cid = (fra, iad), rng, 0
        self.placed: list[pb.Attested] = []

    async def one(self) -> None:
        idc = self.rng.choice(self.idcs)
        what = self.rng.choice(("send",) * 6 + ("mirror",) * 2 + OTHERS)
        if what == "send" or not self.placed:
            self.cid += 1
            who = idc.session("ann", f"phone{idc.origin.idc}")
            answer = await idc.send(who, DIRECT, self.cid, b"%d" % self.cid, floor=self.cid)
            self.placed.append(answer.send_ack.placed)
        elif what == "mirror":
            await idc.mirror_to(self.idcs[idc is self.idcs[0]])
        elif what == "resend":  # by a device that has lost its ack
            key = self.rng.choice(self.placed[-4:]).key
            who, content = idc.session("ann", key.device), b"%d" % key.cid
            answer = await idc.send(who, DIRECT, key.cid, content, floor=key.cid)
            self.placed.append(answer.send_ack.placed)
        elif what == "again":
            await self.again(idc)
        elif what == "claim":
            placed = self.rng.choice(self.placed[-4:])
            claim = pb.Request(claim=pb.Claim(conversation=DIRECT, claims=[placed]))
            assert not (await idc.ask(idc.session("bob"), claim)).error.code
        else:
            placed = self.rng.choice(self.placed[-4:])
            changed: dict[str, Any] = (
                {"edit": b"edit"} if what == "edit" else {"recall": pb.Recall()}
            )
            stamp = stamp_pb(KEYS.stamp(idc.im.hlc.last))
            change = pb.Change(message=placed, composed=stamp, **changed)
            await idc.ask(idc.session("ann"), pb.Request(change=change))
        await idc.folded()

    async def again(self, idc: Idc) -> None:
        """A copy of what the other accepted, as after a seal."""
        placed = self.rng.choice(self.placed[-4:])
        origin = Origin(placed.origin.idc, placed.origin.incarnation)
        stored = await idc.kv.get(keys.entry(0, DIRECT, origin, placed.seq))
        if stored is not None and origin != idc.origin:
            await idc.im.partitions[0].republish(origin, [oplog.Op.FromString(stored)])


@pytest.mark.parametrize("seed", range(6))
async def test_memory_says_what_the_kv_says_whatever_happens(open_idc: OpenIdc, seed: int) -> None:
    rng = random.Random(seed)
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    doings, answered = Doings(fra, iad, rng), 0
    for _ in range(60):
        await doings.one()
        for idc in (fra, iad):
            conversation = idc.im.partitions[0].conversations.get(DIRECT)
            heads = conversation.heads if conversation is not None else {}
            have = {o: max(0, head - rng.randrange(7)) for o, head in heads.items()}
            answered += await same_as_stored(idc, have)
            await same_as_stored(idc, {})
    assert answered > 40


async def test_a_claim_that_lowers_a_place_is_seen(open_idc: OpenIdc) -> None:
    """Of a message that was sent again elsewhere, before its first copy comes."""
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    placed = (await fra.send(fra.session("ann"), DIRECT, 1)).send_ack.placed
    await iad.send(iad.session("ann"), DIRECT, 1)
    await iad.folded()
    assert await same_as_stored(iad, {})
    claim = pb.Request(claim=pb.Claim(conversation=DIRECT, claims=[placed]))
    assert not (await iad.ask(iad.session("bob"), claim)).error.code
    await iad.folded()
    assert not await same_as_stored(iad, {})
    [entry, _] = (await pulled(iad, {})).entries
    assert entry.message.placed.place == placed.place


async def test_a_rebuild_costs_what_was_in_memory(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    for cid in (1, 2, 3):
        await fra.send(ann, DIRECT, cid)
    await fra.folded()
    assert await same_as_stored(fra, {FRA: 1})
    await fra.im.partitions[0].applier.seal({FRA: 3})  # the epoch's marker, and two messages
    await fra.folded()
    assert not await same_as_stored(fra, {FRA: 1})
    assert [e.seq for e in (await pulled(fra, {})).entries] == [1, 2]


async def test_what_is_told_late_is_not_kept(open_idc: OpenIdc) -> None:
    """A message comes in while a partition is folded again, before the recall that was told long
    ago and is not told again."""
    names = ("fra", "iad", "sin")
    fra, iad, sin = [
        await open_idc(
            f"{name}.1", others=[o for o in names if o != name], followers=["iad", "fra"]
        )
        for name in names
    ]
    copy = await sin.logs.open_copy(FRA)  # read before iad's
    placed = (await fra.send(fra.session("ann"), DIRECT, 1, b"secret")).send_ack.placed
    composed = stamp_pb(KEYS.stamp(fra.im.hlc.last))
    change = pb.Change(message=placed, composed=composed, recall=pb.Recall())
    request = pb.Request(change=change)
    assert not (await iad.ask(iad.session("ann"), request)).error.code
    await iad.mirror_to(sin)
    await sin.send(sin.session("bob"), "d:bob:eve", 1)  # what is folded out
    await sin.folded()
    own = fra.logs.own()
    assert own is not None
    await copy.append_copy(await own.read(0, 1, 1 << 20))
    await sin.im.partitions[0].applier.seal({sin.origin: 1})
    await sin.folded()
    await same_as_stored(sin, {IAD: 1})
    assert b"secret" not in (await pulled(sin, {IAD: 1})).SerializeToString()
    told = [entry for name, _, entry in sin.pushes.entries if name == DIRECT]
    assert [entry.WhichOneof("kind") for entry in told] == ["change", "message"]
    assert not any(b"secret" in entry.SerializeToString() for entry in told)


async def test_those_who_ask_for_the_same_at_once_share_a_read(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await fra.send(fra.session("ann"), DIRECT, 1)
    await fra.folded()
    fra.im.pulls.recent.drop(DIRECT)
    real, scans = fra.im.pulls._kv, 0
    go = asyncio.Event()

    class Slow:
        """As a store at the end of a network."""

        async def scan(self, *arguments: Any) -> Any:
            nonlocal scans
            scans += 1
            await go.wait()
            return await real.scan(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    fra.im.pulls._kv = Slow()
    asking = [asyncio.create_task(pulled(fra, {})) for _ in range(10)]
    await asyncio.sleep(0.05)
    go.set()
    answers = await asyncio.gather(*asking)
    assert all([e.seq for e in answer.entries] == [1] for answer in answers)
    counters = fra.im.pulls.counters
    assert (scans, counters.kv, counters.shared) == (1, 1, 9)
    assert [e.seq for e in (await pulled(fra, {})).entries] == [1]
    assert counters.memory == 1


async def test_whoever_waits_reads_by_himself_when_the_reader_is_gone(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await fra.send(fra.session("ann"), DIRECT, 1)
    await fra.folded()
    pulls, partition = fra.im.pulls, fra.im.partitions[0]
    pulls.recent.drop(DIRECT)
    conversation = await partition.conversations.load(DIRECT)
    held = asyncio.Event()

    async def slow(*_: Any) -> Any:
        await held.wait()
        raise AssertionError("it was cancelled")

    real, pulls._read = pulls._read, cast(Any, slow)  # type: ignore[method-assign]
    first = asyncio.create_task(pulls.page(partition, conversation, {}, 0))
    await asyncio.sleep(0)
    second = asyncio.create_task(pulls.page(partition, conversation, {}, 0))
    await asyncio.sleep(0)
    pulls._read = real  # type: ignore[method-assign]
    first.cancel()
    found, _ = await asyncio.wait_for(second, 5)
    assert [e.seq for e in found] == [1]
