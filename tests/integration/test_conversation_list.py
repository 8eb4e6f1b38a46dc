"""The list of conversations over the real im role: unread counts, last messages, pin and mute."""

from __future__ import annotations

import random
from typing import Any

from imcore.convert import place_of, stamp_pb
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.region.model import Messages
from imcore.words import Place
from services.im import listing
from services.im.testing import KEYS, Idc, OpenIdc
from services.node.convergence import partition_hash
from services.ports import Session
from services.sdk.core.events import Event
from services.sdk.core.view import View
from tests.integration.idcs import pair

DIRECT, GROUP = "d:ann:bob", "g:team"


async def listed(idc: Idc, uid: str, limit: int = 0) -> dict[str, pb.ConversationSummary]:
    await idc.folded()
    found: dict[str, pb.ConversationSummary] = {}
    asked = pb.Conversations(limit=limit)
    while True:
        answer = (await idc.ask(idc.session(uid), pb.Request(conversations=asked))).conversations_ok
        assert len(answer.conversations) <= (limit or 50)
        for summary in answer.conversations:
            assert summary.conversation not in found
            found[summary.conversation] = summary
        if not answer.next_page:
            return found
        asked.page = answer.next_page


async def read(idc: Idc, session: Session, placed: pb.Attested) -> None:
    cursor = pb.ReadCursor(conversation=placed.key.conversation, place=placed.place)
    assert not (await idc.ask(session, pb.Request(read_cursor=cursor))).error.code


def setting(idc: Idc, name: str = DIRECT, **what: Any) -> pb.Request:
    stamp = stamp_pb(KEYS.stamp(idc.im.hlc.last))
    return pb.Request(
        set_conversation=pb.SetConversation(conversation=name, composed=stamp, **what)
    )


async def recall(idc: Idc, session: Session, placed: pb.Attested) -> None:
    change = pb.Change(message=placed, recall=pb.Recall())
    change.composed.CopyFrom(stamp_pb(KEYS.stamp(idc.im.hlc.last)))
    assert not (await idc.ask(session, pb.Request(change=change))).error.code


async def test_others_messages_above_the_cursor_are_unread(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann, bob = fra.session("ann"), fra.session("bob")
    assert await listed(fra, "bob") == {}
    placed = [(await fra.send(ann, DIRECT, n, b"%d" % n)).send_ack.placed for n in (1, 2, 3)]
    assert (await listed(fra, "bob"))[DIRECT].unread == 3
    assert (await listed(fra, "ann"))[DIRECT].unread == 0
    await read(fra, bob, placed[0])
    await fra.send(bob, DIRECT, 1, b"mine")
    summary = (await listed(fra, "bob"))[DIRECT]
    assert (summary.unread, summary.more_unread, summary.last.content) == (2, False, b"mine")
    assert (summary.last.key.uid, summary.last.recalled) == ("bob", False)
    assert (await listed(fra, "ann"))[DIRECT].unread == 1
    await recall(fra, ann, placed[1])
    assert (await listed(fra, "bob"))[DIRECT].unread == 1
    await recall(fra, ann, placed[2])
    await read(fra, bob, placed[2])
    last = (await fra.send(ann, DIRECT, 4, b"secret")).send_ack.placed
    await recall(fra, ann, last)
    summary = (await listed(fra, "bob"))[DIRECT]
    assert summary.unread == 0 and summary.last.recalled and not summary.last.content


async def test_what_a_group_said_before_one_came_is_not_unread(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    await fra.create(ann, GROUP, "bob")
    await fra.send(ann, GROUP, 1)
    await fra.folded()
    await fra.change(ann, GROUP, join=["eve"])
    await fra.send(ann, GROUP, 2)
    bobs, eves = (await listed(fra, "bob"))[GROUP], (await listed(fra, "eve"))[GROUP]
    assert (bobs.unread, eves.unread, eves.name) == (2, 1, "a group")
    await fra.change(fra.session("eve"), GROUP, leave=["eve"])
    assert GROUP not in await listed(fra, "eve")


async def test_so_many_messages_are_looked_at_and_the_count_says_so(
    open_idc: OpenIdc, monkeypatch: Any
) -> None:
    monkeypatch.setattr(listing, "LOOKED_AT", 3)
    fra = await open_idc(others=())
    ann = fra.session("ann")
    for cid in range(1, 4):
        await fra.send(ann, DIRECT, cid)
    summary = (await listed(fra, "bob"))[DIRECT]
    assert (summary.unread, summary.more_unread) == (3, False)
    await fra.send(ann, DIRECT, 4)
    summary = (await listed(fra, "bob"))[DIRECT]
    assert (summary.unread, summary.more_unread) == (3, True)


async def test_pages_name_every_conversation_once(open_idc: OpenIdc) -> None:
    """Over several partitions, with large contents, and a group too large for the timeline."""
    fra = await open_idc(others=(), partitions=3, policy=Messages(push_group_members_max=2))
    ann = fra.session("ann")
    names = {f"d:ann:u{number}" for number in range(12)}
    for name in names:
        assert not (await fra.send(ann, name, 1, b"x" * 16_000)).error.code
    await fra.create(ann, GROUP, "bob", "eve")
    for limit in (0, 1, 5):
        assert set(await listed(fra, "ann", limit)) == {*names, GROUP}
    for bad in (b"x", b"\xff\xff", b"\0\0\xff", b"\0\0nonsense"):
        asked = pb.Request(conversations=pb.Conversations(page=bad))
        assert (await fra.ask(ann, asked)).error.code == Code.BAD_REQUEST


async def test_idcs_agree_on_pin_and_mute_and_a_survivor_has_them(open_idc: OpenIdc) -> None:
    """Set in both while neither knows of the other; then one is lost."""
    fra, iad = await pair(open_idc)
    at_fra, at_iad = fra.session("bob"), iad.session("bob", "tablet")
    await fra.send(fra.session("ann"), DIRECT, 1)
    await fra.mirror_to(iad)
    first = setting(fra, pinned=True)
    assert not (await fra.ask(at_fra, first)).error.code
    assert not (await fra.ask(at_fra, setting(fra, muted=True))).error.code
    at_iad.seen_hlc = fra.im.hlc.last
    later = setting(fra, pinned=False, number=2)
    assert not (await iad.ask(at_iad, later)).error.code
    # Asked for again, it is the same word as before and overrides nothing.
    assert not (await iad.ask(iad.session("bob"), first)).error.code
    await fra.mirror_to(iad)
    await iad.mirror_to(fra)
    assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)
    iad.out.add("fra")
    for idc in (fra, iad):
        summary = (await listed(idc, "bob"))[DIRECT]
        assert (summary.pinned, summary.muted) == (False, True)
        assert not (await listed(idc, "ann"))[DIRECT].muted
    assert not (await iad.ask(at_iad, setting(iad, pinned=True))).error.code
    assert (await listed(iad, "bob"))[DIRECT].pinned


async def test_who_may_set_what(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await fra.send(fra.session("ann"), DIRECT, 1)

    async def code(uid: str, request: pb.Request) -> str:
        return (await fra.ask(fra.session(uid), request)).error.code

    assert await code("eve", setting(fra, pinned=True)) == Code.FORBIDDEN
    assert await code("ann", setting(fra)) == Code.BAD_REQUEST
    forged = setting(fra, pinned=True)
    forged.set_conversation.composed.mac = b"12345678"
    assert await code("ann", forged) == Code.BAD_REQUEST
    assert await code("ann", setting(fra, "nonsense", pinned=True)) == Code.BAD_REQUEST


async def test_counts_are_what_the_messages_say_in_both_idcs(open_idc: OpenIdc) -> None:
    """Sends, resends elsewhere, reads and recalls in both IDCs, against a count over all that a
    new device pulls."""
    rng = random.Random(8)
    fra, iad = await pair(open_idc)
    idcs, cids = (fra, iad), {"ann": 0, "bob": 0}
    placed: list[tuple[pb.Attested, bytes]] = []
    read_to: dict[str, Place | None] = {"ann": None, "bob": None}
    for step in range(60):
        idc, uid = rng.choice(idcs), rng.choice(["ann", "bob"])
        session, kind = idc.session(uid), rng.random()
        if kind < 0.5 or not placed:
            cids[uid] += 1
            content = b"%d" % step
            sent = await idc.send(
                session, DIRECT, cids[uid], content, outbox=f"{uid}{idc.origin.idc}{step}",
                floor=cids[uid],
            )  # fmt: skip
            placed.append((sent.send_ack.placed, content))
        elif kind < 0.6:
            again, content = rng.choice(placed)
            key = again.key
            await idc.send(
                idc.session(key.uid), DIRECT, key.cid, content, outbox=key.outbox, floor=key.cid,
                placed=again,
            )  # fmt: skip
        elif kind < 0.8:
            at = rng.choice(placed)[0]
            await read(idc, session, at)
            read_to[uid] = max(filter(None, (read_to[uid], place_of(at.place))))
        else:
            one = rng.choice(placed)[0]
            await recall(idc, idc.session(one.key.uid), one)
    for _ in range(2):
        await fra.folded()
        await iad.folded()
        await fra.mirror_to(iad)
        await iad.mirror_to(fra)
    assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)
    for idc in idcs:
        for uid in ("ann", "bob"):
            events: list[Event] = []
            view = View(DIRECT, events.append)
            view.entries((await idc.pull(idc.session(uid), DIRECT)).pull_ok.entries, True)
            above = read_to[uid]
            unread = [
                key
                for key, shown in view.classes.items()
                if key.uid != uid
                and (above is None or shown.place > above)
                and not view.changed(key).recalled
            ]
            summary = (await listed(idc, uid))[DIRECT]
            assert (summary.unread, summary.more_unread) == (len(unread), False)
            assert summary.last.content == view.messages()[-1].content
