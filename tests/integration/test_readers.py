"""Who has read a message, over the real im role: lists, counts, and receipts that are pushed."""

from __future__ import annotations

from typing import Any

from imcore.convert import key_pb, stamp_pb
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey
from services.im import readers
from services.im.testing import KEYS, Idc, OpenIdc
from services.node.convergence import partition_hash
from services.ports import Session

DIRECT, GROUP = "d:ann:bob", "g:team"


async def asked(idc: Idc, uid: str, placed: pb.Attested, **fields: Any) -> list[pb.ReadersOk]:
    """Page after page."""
    await idc.folded()
    request = pb.Readers(message=placed.key, **fields)
    pages = []
    while True:
        answer = await idc.ask(idc.session(uid), pb.Request(readers=request))
        assert not answer.error.code, answer.error
        pages.append(answer.readers_ok)
        if not answer.readers_ok.next_page:
            return pages
        request.page = answer.readers_ok.next_page


async def lists(idc: Idc, uid: str, placed: pb.Attested) -> tuple[str, str]:
    """Those who have read it and those who have not, in the order in which they came."""
    pages = await asked(idc, uid, placed)
    for page in pages:
        assert (page.read, page.unread) == (len(page.read_by), len(page.unread_by))
    return (
        " ".join(uid for page in pages for uid in page.read_by),
        " ".join(uid for page in pages for uid in page.unread_by),
    )


async def read(idc: Idc, session: Session, placed: pb.Attested) -> None:
    cursor = pb.ReadCursor(conversation=placed.key.conversation, place=placed.place)
    assert not (await idc.ask(session, pb.Request(read_cursor=cursor))).error.code


async def said(idc: Idc, uid: str, name: str, cid: int) -> pb.Attested:
    answer = await idc.send(idc.session(uid), name, cid)
    assert not answer.error.code
    await idc.folded()
    return answer.send_ack.placed


async def test_who_has_read_it_and_who_has_not(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await fra.create(fra.session("ann"), GROUP, "bob", "eve", "tom")
    first, second = [await said(fra, "ann", GROUP, cid) for cid in (1, 2)]
    assert await lists(fra, "ann", first) == ("", "bob eve tom")
    await read(fra, fra.session("bob"), second)
    await read(fra, fra.session("tom"), first)
    assert await lists(fra, "ann", first) == ("bob tom", "eve")
    assert await lists(fra, "eve", second) == ("bob", "eve tom")
    [counted] = await asked(fra, "ann", second, counts_only=True)
    assert (counted.read, counted.unread) == (1, 2)
    assert not counted.read_by and not counted.unread_by
    one = await said(fra, "ann", DIRECT, 1)
    assert await lists(fra, "ann", one) == ("", "bob")
    await read(fra, fra.session("bob"), one)
    assert await lists(fra, "ann", one) == ("bob", "")


async def test_members_count_who_were_there_and_have_not_left_since(open_idc: OpenIdc) -> None:
    """Two IDCs add one user at the same time: the first of the two counts."""
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    ann = fra.session("ann")
    await fra.create(ann, GROUP, "bob", "tom")
    await fra.mirror_to(iad)
    await fra.change(ann, GROUP, join=["eve"])
    between = await said(fra, "ann", GROUP, 1)
    await iad.change(iad.session("bob"), GROUP, join=["eve"])
    await fra.mirror_to(iad)
    await iad.mirror_to(fra)
    await fra.change(ann, GROUP, join=["zoe"])
    after = await said(fra, "ann", GROUP, 2)
    await fra.change(fra.session("tom"), GROUP, leave=["tom"])
    await fra.mirror_to(iad)
    for idc in (fra, iad):
        assert await lists(idc, "ann", between) == ("", "bob eve")
        assert await lists(idc, "zoe", after) == ("", "bob eve zoe")
    await read(fra, fra.session("zoe"), after)
    await fra.change(ann, GROUP, join=["tom"])
    assert await lists(fra, "ann", after) == ("zoe", "bob eve")
    assert await lists(fra, "ann", between) == ("", "bob eve")


async def test_idcs_agree_and_a_survivor_answers(open_idc: OpenIdc) -> None:
    """Read in one IDC and sent in the other, and accepted in both: the places are the same."""
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    one = await said(fra, "ann", DIRECT, 1)
    again = await iad.send(iad.session("ann"), DIRECT, 1, placed=one)
    assert again.send_ack.placed.place == one.place
    two = await said(iad, "ann", DIRECT, 2)
    await fra.mirror_to(iad)
    await read(iad, iad.session("bob"), one)
    await iad.mirror_to(fra)
    await iad.folded()
    assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)
    iad.out.add("fra")
    for idc in (fra, iad):
        assert await lists(idc, "ann", one) == ("bob", "")
        assert await lists(idc, "ann", two) == ("", "bob")


async def test_so_many_members_are_looked_at_for_one_answer(
    open_idc: OpenIdc, monkeypatch: Any
) -> None:
    monkeypatch.setattr(readers, "LOOKED_AT", 4)
    monkeypatch.setattr(readers, "CHUNK", 3)
    fra = await open_idc(others=())
    names = [f"u{number:02}" for number in range(10)]
    await fra.create(fra.session("ann"), GROUP, *names)
    placed = await said(fra, "ann", GROUP, 1)
    for uid in names[::2]:
        await read(fra, fra.session(uid), placed)
    pages = await asked(fra, "ann", placed)
    assert [(page.read, page.unread) for page in pages] == [(2, 1), (2, 2), (1, 2)]
    assert await lists(fra, "ann", placed) == (" ".join(names[::2]), " ".join(names[1::2]))


async def test_who_asks_too_much_waits(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    placed = await said(fra, "ann", DIRECT, 1)
    request = pb.Request(readers=pb.Readers(message=placed.key))
    with fra.im.looking.begun("ann", 30_000):
        pass
    refused = (await fra.ask(fra.session("ann"), request)).error
    assert refused.code == Code.OVERLOADED and refused.retry_after_ms
    assert not (await fra.ask(fra.session("bob"), request)).error.code


async def test_who_may_ask_of_what(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    placed = await said(fra, "ann", DIRECT, 1)

    async def code(uid: str, key: pb.ClientKey) -> str:
        request = pb.Request(readers=pb.Readers(message=key))
        return (await fra.ask(fra.session(uid), request)).error.code

    assert await code("eve", placed.key) == Code.FORBIDDEN
    unknown = key_pb(ClientKey("ann", "phone", "o1", DIRECT, 7))
    assert await code("ann", unknown) == Code.NOT_FOUND
    nonsense = key_pb(ClientKey("ann\0", "phone", "o1", DIRECT, 1))
    assert await code("ann", nonsense) == Code.BAD_REQUEST
    assert await code("ann", pb.ClientKey()) == Code.BAD_REQUEST


def told(idc: Idc) -> list[tuple[str, str, int]]:
    """To whom that who has read up to what; from now on anew."""
    idc.im.tick()
    found = [
        (" ".join(uids), event.cursor_moved.uid, event.cursor_moved.place.hlc)
        for uids, event in idc.pushes.told
    ]
    idc.pushes.told.clear()
    return found


async def test_the_others_of_a_small_conversation_are_told_once_a_turn(open_idc: OpenIdc) -> None:
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    first, second = [await said(fra, "ann", DIRECT, cid) for cid in (1, 2)]
    bob = fra.session("bob")
    await read(fra, bob, first)
    await read(fra, bob, second)
    await fra.folded()
    assert told(fra) == [("ann", "bob", second.place.hlc)]
    assert told(fra) == []
    await read(fra, bob, first)  # says nothing new
    await fra.folded()
    assert told(fra) == []
    await fra.mirror_to(iad)  # to what is connected there
    assert told(iad) == [("ann", "bob", second.place.hlc)]


async def test_nobody_is_told_in_a_group_above_the_size(
    open_idc: OpenIdc, monkeypatch: Any
) -> None:
    monkeypatch.setattr(readers, "TOLD_MEMBERS_MAX", 3)
    fra = await open_idc(others=())
    ann = fra.session("ann")
    await fra.create(ann, GROUP, "bob", "eve")
    placed = await said(fra, "ann", GROUP, 1)
    await read(fra, fra.session("bob"), placed)
    await fra.folded()
    assert told(fra) == [("ann eve", "bob", placed.place.hlc)]
    await fra.change(ann, GROUP, join=["tom"])
    await read(fra, fra.session("eve"), placed)
    await fra.folded()
    assert told(fra) == []


async def test_whom_the_other_blocks_learns_nothing_of_what_is_read(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    placed = await said(fra, "ann", DIRECT, 1)
    back = await said(fra, "bob", DIRECT, 1)
    word = pb.SetFriend(uid="ann", word=pb.SetFriend.BLOCK)
    word.composed.CopyFrom(stamp_pb(KEYS.stamp(fra.im.hlc.last)))
    assert not (await fra.ask(fra.session("bob"), pb.Request(set_friend=word))).error.code
    await fra.folded()
    told(fra)
    await read(fra, fra.session("bob"), placed)
    await read(fra, fra.session("ann"), back)
    fra.im.tick()
    await fra.folded()
    fra.im.tick()
    assert [one[:2] for one in told(fra)] == [("bob", "ann")]  # not ann, of bob
    request = pb.Request(readers=pb.Readers(message=placed.key))
    assert (await fra.ask(fra.session("ann"), request)).error.code == Code.BLOCKED
    request = pb.Request(readers=pb.Readers(message=back.key))
    assert not (await fra.ask(fra.session("bob"), request)).error.code
