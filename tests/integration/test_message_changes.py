"""Edits, recalls and reactions over the real im role: who may, that IDCs agree, what is served."""

from __future__ import annotations

from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from services.im.testing import Idc, OpenIdc
from services.ports import Session
from services.sdk.core.events import Changed, Event
from services.sdk.core.view import View

DIRECT = "d:ann:bob"


async def change(idc: Idc, session: Session, placed: pb.Attested, **what: object) -> str:
    request = pb.Request(change=pb.Change(message=placed, **what))  # type: ignore[arg-type]
    return (await idc.ask(session, request)).error.code


async def seen(idc: Idc, uid: str) -> tuple[View, list[Event]]:
    """What a new device shows that pulls everything."""
    events: list[Event] = []
    view = View(DIRECT, (uid, "new"), events.append)
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
    moved.seen_hlc = fra.im.hlc.last  # as its SDK would tell
    assert not await change(iad, moved, placed, edit=b"last")
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
