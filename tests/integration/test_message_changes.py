"""Edits, recalls, reactions and what messages refer to, over the real im role: who may, that IDCs
agree, what is served."""

from __future__ import annotations

from typing import Any

import pytest

from imcore.convert import key_of, stamp_pb
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.region.model import Messages
from services.im import changes, keys
from services.im.testing import KEYS, Idc, OpenIdc
from services.node.convergence import partition_hash
from services.ports import Session
from services.sdk.core.events import Changed, Event
from services.sdk.core.view import View

DIRECT = "d:ann:bob"


def asked(idc: Idc, placed: pb.Attested, **what: Any) -> pb.Request:
    """As an SDK asks that has seen all that this IDC has done."""
    seen = what.pop("composed", None) or stamp_pb(KEYS.stamp(idc.im.hlc.last))
    return pb.Request(change=pb.Change(message=placed, composed=seen, **what))


async def change(idc: Idc, session: Session, placed: pb.Attested, **what: Any) -> str:
    return (await idc.ask(session, asked(idc, placed, **what))).error.code


async def seen(idc: Idc, uid: str) -> tuple[View, list[Event]]:
    """What a new device shows that pulls everything."""
    events: list[Event] = []
    view = View(DIRECT, events.append)
    await idc.folded()
    view.entries((await idc.pull(idc.session(uid), DIRECT)).pull_ok.entries, True)
    return view, events


async def test_who_may_edit_recall_and_react(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann, bob, eve = fra.session("ann"), fra.session("bob"), fra.session("eve")
    placed = (await fra.send(ann, DIRECT, 1, b"one")).send_ack.placed
    await fra.folded()
    recall, react = pb.Recall(), pb.Reaction(code="+1", on=True)
    assert await change(fra, bob, placed, edit=b"mine") == Code.FORBIDDEN
    assert await change(fra, bob, placed, recall=recall) == Code.FORBIDDEN
    assert await change(fra, eve, placed, react=react) == Code.FORBIDDEN
    assert await change(fra, ann, placed) == Code.BAD_REQUEST
    forged = pb.Stamp(hlc=1 << 60, key_id=1, mac=b"12345678")
    assert await change(fra, ann, placed, edit=b"2", composed=forged) == Code.BAD_REQUEST
    assert await change(fra, bob, placed, react=pb.Reaction(on=True)) == Code.BAD_REQUEST
    absent = pb.Attested(key=placed.key)
    absent.key.cid = 9
    assert await change(fra, bob, absent, react=react) == Code.NOT_FOUND
    assert not await change(fra, ann, placed, edit=b"two")
    assert not await change(fra, bob, placed, react=react)
    view, _ = await seen(fra, "bob")
    [shown] = view.messages()
    assert shown.content == b"two"
    [key] = view.classes
    assert view.changed(key).reactions == (("bob", "+1"),)
    assert not await change(fra, bob, placed, react=pb.Reaction(code="+1"))
    view, events = await seen(fra, "bob")
    assert view.changed(key).reactions == ()
    assert isinstance(events[-1], Changed)


async def test_idcs_agree_when_a_change_comes_before_its_message(open_idc: OpenIdc) -> None:
    """The MAC vouches for a message that the IDC does not have; the later edit counts; what was
    recalled is given to nobody any more."""
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    placed = (await fra.send(fra.session("ann"), DIRECT, 1, b"secret")).send_ack.placed
    assert not await change(fra, fra.session("ann"), placed, edit=b"secret too")
    moved = iad.session("ann", "tablet")
    stamp = stamp_pb(KEYS.stamp(fra.im.hlc.last))  # that its SDK has
    assert not await change(iad, moved, placed, edit=b"last", composed=stamp)
    await iad.mirror_to(fra)
    await fra.mirror_to(iad)
    for idc in (fra, iad):
        view, _ = await seen(idc, "bob")
        assert [message.content for message in view.messages()] == [b"last"]
    assert not await change(iad, moved, placed, recall=pb.Recall())
    await iad.mirror_to(fra)
    for idc in (fra, iad):
        view, _ = await seen(idc, "bob")
        [key] = view.classes
        assert view.changed(key).recalled
        pulled = (await idc.pull(idc.session("bob"), DIRECT)).SerializeToString()
        assert b"secret" not in pulled and b"last" not in pulled
        history = pb.Request(history=pb.History(conversation=DIRECT))
        page = await idc.ask(idc.session("bob"), history)
        assert len(page.pull_ok.entries) == 1
        assert b"secret" not in page.SerializeToString()
    assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)


async def test_what_was_recalled_is_pushed_without_its_content(open_idc: OpenIdc) -> None:
    """An IDC that folds message, edit and recall at once, or the message after the recall."""
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    ann = fra.session("ann")
    placed = (await fra.send(ann, DIRECT, 1, b"secret")).send_ack.placed
    assert not await change(fra, ann, placed, edit=b"secret too")
    assert not await change(fra, ann, placed, recall=pb.Recall())
    other = (await fra.send(ann, DIRECT, 2, b"secret as well")).send_ack.placed
    assert not await change(iad, iad.session("ann"), other, recall=pb.Recall())
    await fra.mirror_to(iad)
    told = [entry for _, _, entry in iad.pushes.entries]
    kinds = [entry.WhichOneof("kind") for entry in told]
    assert kinds == ["change", "message", "change", "change", "message"]
    assert not any(b"secret" in entry.SerializeToString() for entry in told)


async def test_the_state_that_replicas_compare_has_the_changes(open_idc: OpenIdc) -> None:
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    placed = (await fra.send(fra.session("ann"), DIRECT, 1, b"one")).send_ack.placed
    await fra.mirror_to(iad)
    whats: list[dict[str, Any]] = [
        {"react": pb.Reaction(code="+1", on=True)}, {"edit": b"two"}, {"recall": pb.Recall()},
    ]  # fmt: skip
    for what in whats:
        assert not await change(fra, fra.session("ann"), placed, **what)
        assert await partition_hash(fra.kv, 0) != await partition_hash(iad.kv, 0)
        row = keys.client_key(0, key_of(placed.key))
        assert await fra.kv.get(row) != await iad.kv.get(row)
        await fra.mirror_to(iad)
        assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)


async def test_an_edit_that_is_asked_for_again_does_not_override_a_later_one(
    open_idc: OpenIdc,
) -> None:
    """The first is answered ``unavailable``; before its device asks again, another edits."""
    fra = await open_idc("fra.1", policy=Messages(replicated_timeout_ms=50), others=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    ann, tablet = fra.session("ann"), fra.session("ann", "tablet")
    placed = (await fra.send(ann, DIRECT, 1, b"one")).send_ack.placed
    first = asked(fra, placed, edit=b"first", number=1)
    assert (await fra.ask(ann, first)).error.code == Code.UNAVAILABLE
    later = asked(fra, placed, edit=b"later", number=1)
    fra.followers.add("iad")
    assert not (await fra.ask(tablet, later)).error.code
    logged = len((await fra.pull(ann, DIRECT)).pull_ok.entries)
    assert not (await fra.ask(ann, first)).error.code
    assert len((await fra.pull(ann, DIRECT)).pull_ok.entries) == logged  # it said nothing new
    # Nor by way of an IDC that has neither of them yet.
    assert not (await iad.ask(iad.session("ann"), first)).error.code
    await fra.mirror_to(iad)
    await iad.mirror_to(fra)
    for idc in (fra, iad):
        view, _ = await seen(idc, "bob")
        assert [message.content for message in view.messages()] == [b"later"]


async def test_a_reaction_is_taken_back_however_many_there_are(
    open_idc: OpenIdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "REACTIONS_MAX", 3)
    fra = await open_idc(others=())
    ann, bob = fra.session("ann"), fra.session("bob")
    placed = (await fra.send(ann, DIRECT, 1, b"one")).send_ack.placed

    async def react(session: Session, code: str, on: bool = True) -> str:
        return await change(fra, session, placed, react=pb.Reaction(code=code, on=on))

    for code in "abc":
        assert not await react(bob, code)
    assert await react(ann, "a") == await react(bob, "d") == Code.TOO_LARGE
    assert not await react(bob, "c", on=False)
    assert await react(bob, "d") == Code.TOO_LARGE  # its row still has the one taken back
    assert not await react(bob, "c")
    # One of another IDC that has not come here yet; but not any number of such.
    for code in "xyz":
        assert not await react(bob, code, on=False)
    assert await react(bob, "w", on=False) == Code.TOO_LARGE
    view, _ = await seen(fra, "bob")
    [key] = view.classes
    assert view.changed(key).reactions == (("bob", "a"), ("bob", "b"), ("bob", "c"))


async def test_what_a_message_refers_to_is_part_of_it(open_idc: OpenIdc) -> None:
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    ann, bob = fra.session("ann"), fra.session("bob")
    first = (await fra.send(ann, DIRECT, 1, b"one")).send_ack.placed
    refs = pb.Refs(reply=first.key, mentions=["ann"])
    encoded = refs.SerializeToString()
    answer = (await fra.send(bob, DIRECT, 1, b"two", refs=encoded)).send_ack.placed
    again = await fra.send(bob, DIRECT, 1, b"two", refs=encoded)
    assert again.send_ack.outcome == pb.SendAck.KNOWN
    await fra.folded()
    for other in (b"", pb.Refs(mentions=["ann"]).SerializeToString()):
        conflict = await fra.send(bob, DIRECT, 1, b"two", refs=other)
        assert conflict.error.code == Code.CID_CONFLICT
    # An attested place counts where it was not seen: the hash that it vouches for is the same.
    await fra.mirror_to(iad)
    moved = await iad.send(iad.session("bob"), DIRECT, 1, b"two", refs=encoded, placed=answer)
    assert moved.send_ack.placed.place == answer.place
    for idc in (fra, iad):
        view, _ = await seen(idc, "ann")
        assert [message.mentions for message in view.messages()] == [(), ("ann",)]
        assert view.messages()[1].reply == view.messages()[0].key
    assert not await change(fra, bob, answer, recall=pb.Recall())
    pulled = (await fra.pull(ann, DIRECT)).pull_ok
    assert not any(entry.message.refs for entry in pulled.entries)


@pytest.mark.parametrize(
    "refs",
    [
        b"\xff",
        pb.Refs(mentions=["x"] * 101).SerializeToString(),
        pb.Refs(sticker="No code!").SerializeToString(),
        pb.Refs(media=[pb.MediaRef(idc="fra", type="a/b")]).SerializeToString(),
        pb.Refs(mentions=["not a uid"]).SerializeToString(),
        pb.Refs(reply=pb.ClientKey(conversation=DIRECT)).SerializeToString(),
        pb.Refs(
            reply=pb.ClientKey(uid="ann", device="d", outbox="o", conversation="d:ann:eve", cid=1)
        ).SerializeToString(),
    ],
)
async def test_what_a_message_cannot_refer_to(open_idc: OpenIdc, refs: bytes) -> None:
    fra = await open_idc(others=())
    refused = await fra.send(fra.session("ann"), DIRECT, 1, b"one", refs=refs)
    assert refused.error.code == Code.BAD_REQUEST
