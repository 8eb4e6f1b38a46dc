"""Friends over the real im role: who may what, that IDCs agree, the list, and what is told."""

from __future__ import annotations

from typing import Any

import pytest

from imcore.convert import stamp_pb
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.region.model import Messages
from services.im.testing import KEYS, Idc, OpenIdc
from services.node.convergence import partition_hash
from tests.integration.idcs import meet, pair

DIRECT = "d:ann:bob"
Word = pb.SetFriend


def asked(idc: Idc, uid: str, word: pb.SetFriend.Word.ValueType, number: int = 0) -> pb.Request:
    """As an SDK asks that has seen all that this IDC has done."""
    seen = stamp_pb(KEYS.stamp(idc.im.hlc.last))
    return pb.Request(set_friend=Word(uid=uid, word=word, composed=seen, number=number))


async def say(idc: Idc, uid: str, word: pb.SetFriend.Word.ValueType, other: str) -> str:
    return (await idc.ask(idc.session(uid), asked(idc, other, word))).error.code


async def listed(idc: Idc, uid: str, limit: int = 0) -> dict[str, str]:
    """Of each other one what he is to this user."""
    await idc.folded()
    found: dict[str, str] = {}
    request = pb.Friends(limit=limit)
    while True:
        answer = (await idc.ask(idc.session(uid), pb.Request(friends=request))).friends_ok
        assert len(answer.friends) <= (limit or 200)
        for each in answer.friends:
            assert each.uid not in found
            found[each.uid] = "blocked" if each.blocked else pb.Friend.State.Name(each.state)
        if not answer.next_page:
            return found
        request.page = answer.next_page


def told(idc: Idc) -> list[tuple[str, str, str]]:
    """To whom, about whom, what; since the last time."""
    found = []
    for [uid], event in idc.pushes.told:
        state = pb.Friend.State.Name(event.friend.state)
        found.append((uid, event.friend.uid, "blocked" if event.friend.blocked else state))
    idc.pushes.told.clear()
    return found


async def test_request_accept_decline_and_remove(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    assert await say(fra, "bob", Word.ACCEPT, "ann") == Code.NOT_FOUND
    assert await say(fra, "bob", Word.DECLINE, "ann") == Code.NOT_FOUND
    assert not await say(fra, "ann", Word.REQUEST, "bob")
    assert (await listed(fra, "ann"), await listed(fra, "bob")) == (
        {"bob": "ASKED"}, {"ann": "ASKING"},
    )  # fmt: skip
    assert await say(fra, "ann", Word.ACCEPT, "bob") == Code.NOT_FOUND  # by the asked one only
    assert not await say(fra, "bob", Word.DECLINE, "ann")
    assert await listed(fra, "ann") == await listed(fra, "bob") == {}
    assert not await say(fra, "ann", Word.REQUEST, "bob")
    assert not await say(fra, "bob", Word.ACCEPT, "ann")
    assert (await listed(fra, "ann"), await listed(fra, "bob")) == (
        {"bob": "FRIEND"}, {"ann": "FRIEND"},
    )  # fmt: skip
    assert await say(fra, "bob", Word.DECLINE, "ann") == Code.NOT_FOUND  # it is accepted
    assert not await say(fra, "ann", Word.REMOVE, "bob")
    assert await listed(fra, "ann") == await listed(fra, "bob") == {}
    assert not await say(fra, "ann", Word.REQUEST, "bob")
    assert await listed(fra, "bob") == {"ann": "ASKING"}
    assert not await say(fra, "bob", Word.REQUEST, "ann")  # both ask
    assert await listed(fra, "bob") == {"ann": "FRIEND"}
    assert told(fra) == [
        ("ann", "bob", "ASKED"), ("bob", "ann", "ASKING"),
        ("ann", "bob", "NONE"), ("bob", "ann", "NONE"),
        ("ann", "bob", "ASKED"), ("bob", "ann", "ASKING"),
        ("ann", "bob", "FRIEND"), ("bob", "ann", "FRIEND"),
        ("ann", "bob", "NONE"), ("bob", "ann", "NONE"),
        ("ann", "bob", "ASKED"), ("bob", "ann", "ASKING"),
        ("ann", "bob", "FRIEND"), ("bob", "ann", "FRIEND"),
    ]  # fmt: skip


@pytest.mark.parametrize("other", ["ann", "", "x" * 65, "a b", "a\0b"])
async def test_no_friend_that_is_no_other_user(open_idc: OpenIdc, other: str) -> None:
    fra = await open_idc(others=())
    end = fra.end()
    assert await say(fra, "ann", Word.REQUEST, other) == Code.BAD_REQUEST
    assert await say(fra, "ann", Word.NONE, "bob") == Code.BAD_REQUEST
    forged = asked(fra, "bob", Word.REQUEST)
    forged.set_friend.composed.mac = b"12345678"
    assert (await fra.ask(fra.session("ann"), forged)).error.code == Code.BAD_REQUEST
    for page in (b"x", b"\xff\xff", b"\0\0\xff", b"\0\0a b"):
        request = pb.Request(friends=pb.Friends(page=page))
        assert (await fra.ask(fra.session("ann"), request)).error.code == Code.BAD_REQUEST
    assert fra.end() == end


async def test_idcs_that_hear_contradicting_words_at_once_agree(open_idc: OpenIdc) -> None:
    """Both ask; one accepts here while the other takes it back there; a block against both."""
    fra, iad = await pair(open_idc)
    assert not await say(fra, "ann", Word.REQUEST, "bob")
    assert not await say(iad, "bob", Word.REQUEST, "ann")
    assert await listed(fra, "ann") == {"bob": "ASKED"}
    await meet(fra, iad)
    assert await listed(fra, "ann") == await listed(iad, "ann") == {"bob": "FRIEND"}
    assert ("bob", "ann", "FRIEND") in told(iad)
    assert not await say(fra, "ann", Word.REQUEST, "eve")
    await fra.mirror_to(iad)
    assert not await say(iad, "eve", Word.ACCEPT, "ann")
    assert not await say(fra, "ann", Word.REMOVE, "eve")
    await meet(fra, iad)
    assert await listed(fra, "eve") == await listed(iad, "eve")
    assert (await listed(fra, "eve")).get("ann") in (None, "ASKING", "ASKED")
    assert not await say(fra, "bob", Word.BLOCK, "ann")
    assert not await say(iad, "ann", Word.REMOVE, "bob")
    assert not await say(iad, "ann", Word.REQUEST, "bob")
    await meet(fra, iad)
    for idc in (fra, iad):
        assert (await listed(idc, "bob"))["ann"] == "blocked"


async def test_a_word_that_is_asked_for_again_does_not_override_a_later_one(
    open_idc: OpenIdc,
) -> None:
    """The request is answered ``unavailable``; it is declined before its device asks again, in
    either IDC."""
    fra = await open_idc("fra.1", policy=Messages(replicated_timeout_ms=50), others=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    ann, request = fra.session("ann"), asked(fra, "bob", Word.REQUEST, 1)
    assert (await fra.ask(ann, request)).error.code == Code.UNAVAILABLE
    fra.followers.add("iad")
    await fra.mirror_to(iad)
    assert not await say(fra, "bob", Word.DECLINE, "ann")
    end = fra.end()
    assert not (await fra.ask(ann, request)).error.code
    assert fra.end() == end  # it said nothing new
    assert not (await iad.ask(iad.session("ann"), request)).error.code
    await meet(fra, iad)
    for idc in (fra, iad):
        assert await listed(idc, "bob") == {}


async def test_the_list_is_whole_page_by_page_and_after_a_restart(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=(), partitions=3)
    others = {f"u{number:02}" for number in range(20)}
    for other in others:
        assert not await say(fra, "ann", Word.REQUEST, other)
    for gone in ("u03", "u07"):
        assert not await say(fra, "ann", Word.REMOVE, gone)
    assert not await say(fra, "ann", Word.BLOCK, "u04")
    expected = dict.fromkeys(others - {"u03", "u07"}, "ASKED") | {"u04": "blocked"}
    for limit in (0, 1, 6):
        assert await listed(fra, "ann", limit) == expected
    await fra.stop()
    fra = await open_idc(others=(), partitions=3)
    assert await listed(fra, "ann") == expected
    # What a word is judged by is read from the KV too.
    assert await say(fra, "u04", Word.REQUEST, "ann") == Code.BLOCKED
    assert await say(fra, "u05", Word.ACCEPT, "ann") == ""


async def test_the_state_that_replicas_compare_has_friends(open_idc: OpenIdc) -> None:
    fra, iad = await pair(open_idc)
    await fra.mirror_to(iad)
    for word in (Word.REQUEST, Word.BLOCK, Word.UNBLOCK, Word.REMOVE):
        assert not await say(fra, "ann", word, "bob")
        assert await partition_hash(fra.kv, 0) != await partition_hash(iad.kv, 0)
        await fra.mirror_to(iad)
        assert await partition_hash(fra.kv, 0) == await partition_hash(iad.kv, 0)


async def change(idc: Idc, uid: str, placed: pb.Attested, **what: Any) -> str:
    request = pb.Change(message=placed, composed=stamp_pb(KEYS.stamp(idc.im.hlc.last)), **what)
    return (await idc.ask(idc.session(uid), pb.Request(change=request))).error.code


async def test_whom_a_user_blocks_does_not_write_to_him(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann, bob = fra.session("ann"), fra.session("bob")
    assert not await say(fra, "ann", Word.REQUEST, "bob")
    assert not await say(fra, "bob", Word.ACCEPT, "ann")
    placed = (await fra.send(ann, DIRECT, 1)).send_ack.placed
    await fra.create(ann, "g:team", "bob")
    fra.pushes.told.clear()
    assert not await say(fra, "bob", Word.BLOCK, "ann")
    assert told(fra) == [("ann", "bob", "NONE"), ("bob", "ann", "blocked")]
    assert (await fra.send(ann, DIRECT, 2)).error.code == Code.BLOCKED
    assert await change(fra, "ann", placed, edit=b"more") == Code.BLOCKED
    react = pb.Reaction(code="+1", on=True)
    assert await change(fra, "ann", placed, react=react) == Code.BLOCKED
    typing = pb.Request(typing=pb.Typing(conversation=DIRECT))
    assert not (await fra.ask(ann, typing)).error.code  # and nobody is told
    for session, other, unwatched in ((ann, "bob", False), (bob, "ann", True)):
        watch = pb.Request(watch=pb.Watch(uids=["eve", other]))
        users = (await fra.ask(session, watch)).watch_ok.users
        assert [row.uid for row in users] == ["eve", other]
        # Who blocks is shown as never seen; ``unwatched`` is what this rig's routes say of others.
        assert (users[0].unwatched, users[1].unwatched) == (True, unwatched)
    assert await say(fra, "ann", Word.REQUEST, "bob") == Code.BLOCKED
    assert await say(fra, "bob", Word.REQUEST, "ann") == Code.FORBIDDEN
    # What is his own, and others': his recall, groups, pulls; and bob may still write.
    assert not await change(fra, "ann", placed, recall=pb.Recall())
    assert not (await fra.send(ann, "g:team", 1)).error.code
    assert not (await fra.pull(ann, DIRECT)).error.code
    assert not (await fra.send(bob, DIRECT, 1)).error.code
    assert await listed(fra, "ann") == {}  # it does not say that he is blocked
    assert not await say(fra, "bob", Word.UNBLOCK, "ann")
    assert await listed(fra, "bob") == {}  # friends no more
    assert not (await fra.send(ann, DIRECT, 2)).error.code


async def test_between_idcs_a_block_counts_where_it_has_come(open_idc: OpenIdc) -> None:
    """What another IDC took before is delivered, and stays when it is offered to this one."""
    fra, iad = await pair(open_idc)
    assert not await say(iad, "bob", Word.BLOCK, "ann")
    taken = await fra.send(fra.session("ann"), DIRECT, 1, b"in time")
    assert not taken.error.code
    # As after the loss of fra: the message is offered with the place that it has got there.
    placed = taken.send_ack.placed
    moved = await iad.send(iad.session("ann"), DIRECT, 1, b"in time", placed=placed)
    assert moved.send_ack.placed.place == placed.place
    again = await iad.send(iad.session("ann"), DIRECT, 2, b"too late")
    assert again.error.code == Code.BLOCKED
    await meet(fra, iad)
    assert (await fra.send(fra.session("ann"), DIRECT, 2, b"later")).error.code == Code.BLOCKED
    for idc in (fra, iad):
        assert set(await idc.contents(idc.session("bob"), DIRECT)) == {b"in time"}
