"""Search in one's own history over the real im role."""

from __future__ import annotations

import random
from typing import Any

from imcore.convert import key_of, key_pb, stamp_pb
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.region.model import Messages
from imcore.runtime import ManualClock
from imcore.words import ClientKey, Lane, lane_of
from services.im import looking, search
from services.im.testing import KEYS, Idc, OpenIdc

DIRECT, OTHER, GROUP = "d:ann:bob", "d:ann:eve", "g:team"


async def answers(idc: Idc, uid: str, words: str, **fields: Any) -> list[pb.SearchOk]:
    """Page after page."""
    await idc.folded()
    request = pb.Search(words=words, **fields)
    found: list[pb.SearchOk] = []
    while True:
        answer = await idc.ask(idc.session(uid), pb.Request(search=request))
        assert not answer.error.code, answer.error
        found.append(answer.search_ok)
        if not answer.search_ok.HasField("next_page"):
            return found
        request.page.CopyFrom(answer.search_ok.next_page)


async def found(idc: Idc, uid: str, words: str, **fields: Any) -> list[bytes]:
    pages = await answers(idc, uid, words, **fields)
    rows = [row for page in pages for row in page.found]
    assert rows == sorted(rows, key=lambda row: row.place.hlc, reverse=True)
    return [row.content for row in rows]


class Sender:
    """Gives every message its cid."""

    def __init__(self) -> None:
        self._cids: dict[Lane, int] = {}

    async def say(self, idc: Idc, uid: str, name: str, content: bytes) -> pb.Attested:
        lane = lane_of(ClientKey(uid, "phone", f"o{idc.origin.idc}", name, 1))
        cid = self._cids[lane] = self._cids.get(lane, 0) + 1
        sent = await idc.send(idc.session(uid), name, cid, content, outbox=lane.outbox, floor=cid)
        assert not sent.error.code
        return sent.send_ack.placed


async def change(idc: Idc, uid: str, placed: pb.Attested, **what: Any) -> None:
    change = pb.Change(message=placed, **what)
    change.composed.CopyFrom(stamp_pb(KEYS.stamp(idc.im.hlc.last)))
    assert not (await idc.ask(idc.session(uid), pb.Request(change=change))).error.code


async def test_the_newest_of_all_conversations_come_first(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=(), partitions=3)
    sender = Sender()
    await fra.create(fra.session("eve"), GROUP, "ann")
    await sender.say(fra, "ann", DIRECT, b"Lunch at noon?")
    await sender.say(fra, "eve", GROUP, b"lunch for all")
    await sender.say(fra, "bob", DIRECT, b"no lunch today")
    await sender.say(fra, "bob", DIRECT, "明天一起吃午饭".encode())
    await sender.say(fra, "bob", DIRECT, b"lunch \xff\xfe")
    await sender.say(fra, "ann", OTHER, b"had lunch")
    await sender.say(fra, "bob", "d:bob:eve", b"lunch with eve")
    everywhere = [b"had lunch", b"no lunch today", b"lunch for all", b"Lunch at noon?"]
    assert await found(fra, "ann", "LUNCH") == everywhere
    assert await found(fra, "ann", "lunch", conversation=DIRECT) == everywhere[1::2]
    assert await found(fra, "ann", "lunch today") == everywhere[1:2]
    assert await found(fra, "bob", "午饭") == ["明天一起吃午饭".encode()]
    assert await found(fra, "tom", "lunch") == []
    assert await found(fra, "ann", "dinner") == []


async def test_it_is_found_as_it_says_now(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    sender = Sender()
    edited = await sender.say(fra, "ann", DIRECT, b"red")
    recalled = await sender.say(fra, "ann", DIRECT, b"red and green")
    await fra.folded()
    await change(fra, "ann", edited, edit=b"blue")
    assert await found(fra, "bob", "red") == [b"red and green"]
    assert await found(fra, "bob", "blue") == [b"blue"]
    await change(fra, "ann", recalled, recall=pb.Recall())
    assert await found(fra, "bob", "red") == []
    await change(fra, "ann", edited, recall=pb.Recall())
    assert await found(fra, "ann", "blue") == []


async def test_what_a_group_said_without_one_is_not_found(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    sender, ann = Sender(), fra.session("ann")
    await fra.create(ann, GROUP, "bob")
    await sender.say(fra, "ann", GROUP, b"word one")
    await fra.folded()
    await fra.change(ann, GROUP, join=["eve"])
    await sender.say(fra, "ann", GROUP, b"word two")
    assert await found(fra, "eve", "word") == [b"word two"]
    assert await found(fra, "eve", "word", conversation=GROUP) == [b"word two"]
    await fra.change(fra.session("eve"), GROUP, leave=["eve"])
    assert await found(fra, "eve", "word") == []
    refused = pb.Request(search=pb.Search(words="word", conversation=GROUP))
    assert (await fra.ask(fra.session("eve"), refused)).error.code == Code.FORBIDDEN
    await fra.change(ann, GROUP, join=["eve"])
    await sender.say(fra, "ann", GROUP, b"word three")
    assert await found(fra, "eve", "word") == [b"word three"]
    assert await found(fra, "bob", "word") == [b"word three", b"word two", b"word one"]


async def test_pages_find_everything_once_with_bounded_work(
    open_idc: OpenIdc, monkeypatch: Any
) -> None:
    """Many conversations in several partitions, a group too large for the timeline, large contents:
    against what was said."""
    monkeypatch.setattr(looking, "BURST", 1e9)
    fra = await open_idc(others=(), partitions=3, policy=Messages(push_group_members_max=2))
    sender, rng = Sender(), random.Random(8)
    await fra.create(fra.session("ann"), GROUP, "bob", "eve")
    names = [GROUP, *(f"d:ann:u{number}" for number in range(11))]
    said = []
    for number in range(150):
        word = b"apple" if rng.random() < 0.3 else b"pear"
        size = 14_000 if rng.random() < 0.2 else 0
        content = b"%b %d " % (word, number) + b"x" * size
        await sender.say(fra, "ann", rng.choice(names), content)
        if word == b"apple":
            said.append(content)
    said.reverse()
    assert await found(fra, "ann", "apple") == said
    assert await found(fra, "ann", "apple", limit=4) == said
    monkeypatch.setattr(search, "CHUNK", 3)
    monkeypatch.setattr(search, "LOOKED_AT", 20)
    pages = await answers(fra, "ann", "pear")
    assert len(pages) > 10 and max(len(page.found) for page in pages) <= 20
    assert await found(fra, "ann", "apple") == said
    # Of a user in more conversations than that, so many after the other.
    monkeypatch.setattr(search, "CONVERSATIONS_MAX", 5)
    rows = [row for page in await answers(fra, "ann", "apple") for row in page.found]
    assert sorted(row.content for row in rows) == sorted(said)
    assert len({key_of(row.key) for row in rows}) == len(said)


async def test_both_idcs_find_the_same_and_go_on_with_each_others_pages(open_idc: OpenIdc) -> None:
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    sender, said = Sender(), []
    for number in range(12):
        idc = (fra, iad)[number % 2]
        placed = await sender.say(idc, "ann", (DIRECT, OTHER)[number % 3 == 0], b"w %d" % number)
        said.append(b"w %d" % number)
        await fra.folded()
        await iad.folded()
        await fra.mirror_to(iad)
        await iad.mirror_to(fra)
        if number == 4:  # accepted once more, in the other one: still one message
            again = await iad.send(
                iad.session("ann"), placed.key.conversation, placed.key.cid, b"w 4",
                outbox=placed.key.outbox, floor=placed.key.cid, placed=placed,
            )  # fmt: skip
            assert not again.error.code
    request = pb.Search(words="w", limit=1)
    rows: list[bytes] = []
    while True:
        idc = (fra, iad)[len(rows) % 2]
        answer = (await idc.ask(idc.session("ann"), pb.Request(search=request))).search_ok
        rows += [row.content for row in answer.found]
        if not answer.HasField("next_page"):
            break
        request.page.CopyFrom(answer.next_page)
    assert rows == said[::-1]


async def test_who_may_search_for_what(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await Sender().say(fra, "ann", DIRECT, b"word")

    async def code(uid: str, **fields: Any) -> str:
        request = pb.Request(search=pb.Search(**{"words": "word", **fields}))
        return (await fra.ask(fra.session(uid), request)).error.code

    assert await code("ann") == ""
    assert await code("eve", conversation=DIRECT) == Code.FORBIDDEN
    assert await code("ann", conversation="nonsense") == Code.BAD_REQUEST
    assert await code("ann", words="?!") == Code.BAD_REQUEST
    for page in (
        pb.SearchPage(partition=1),
        pb.SearchPage(last_partition=7, last=DIRECT),
        pb.SearchPage(after="d:\0"),
        pb.SearchPage(before=pb.Place(hlc=1)),
    ):
        assert await code("ann", page=page) == Code.BAD_REQUEST


async def test_while_a_partition_is_folded_again_nobody_waits_for_it(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await Sender().say(fra, "ann", DIRECT, b"word")
    await fra.folded()
    request = pb.Request(search=pb.Search(words="word"))
    fra.im.partitions[0].conversations.withhold()
    assert (await fra.ask(fra.session("ann"), request)).error.code == Code.UNAVAILABLE
    fra.im.partitions[0].conversations.release()
    assert len((await fra.ask(fra.session("ann"), request)).search_ok.found) == 1


async def test_a_user_looks_for_so_much_in_a_time(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=(), clock=ManualClock())
    await Sender().say(fra, "ann", DIRECT, b"word")
    request = pb.Request(search=pb.Search(words="word"))
    codes = [(await fra.ask(fra.session("ann"), request)).error.code for _ in range(20)]
    assert codes[0] == "" and codes[-1] == Code.OVERLOADED
    assert not (await fra.ask(fra.session("bob"), request)).error.code
    key = key_pb(ClientKey("ann", "phone", "ofra", DIRECT, 1))
    asked = pb.Request(readers=pb.Readers(message=key))
    assert (await fra.ask(fra.session("ann"), asked)).error.code == Code.OVERLOADED
