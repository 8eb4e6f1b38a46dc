"""The im role over its real engines: who may do what, what is answered when, what pages hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from imcore.attest import content_hash
from imcore.convert import attested_pb, origin_of
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.region.model import Messages, WhenUnreplicated
from imcore.words import ClientKey, Origin, Place
from services.im import known
from services.im.testing import KEYS, PATIENT_MS, Idc, OpenIdc

FRA, IAD, SIN = Origin("fra", 1), Origin("iad", 1), Origin("sin", 1)
DIRECT = "d:ann:bob"
GROUP = "g:team"
REPLICATED = pb.DURABILITY_REPLICATED


def code(response: pb.Response) -> str:
    return response.error.code


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing to wait on
            await asyncio.sleep(0.005)


# ----------------------------------------------------------------------------------- groups


async def test_who_may_create_join_add_and_leave(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann, bob, eve = fra.session("ann"), fra.session("bob"), fra.session("eve")
    assert code(await fra.change(bob, GROUP, join=["bob"])) == Code.NOT_FOUND
    assert not code(await fra.create(ann, GROUP, "bob"))
    assert code(await fra.create(eve, GROUP)) == Code.FORBIDDEN  # it is another's
    assert code(await fra.change(eve, GROUP, join=["mallory"])) == Code.FORBIDDEN
    assert code(await fra.change(bob, GROUP, leave=["ann"])) == Code.FORBIDDEN
    assert not code(await fra.change(bob, GROUP, join=["carl"]))  # a member adds others
    assert not code(await fra.change(eve, GROUP, join=["eve"]))  # who knows the id may join
    assert not code(await fra.change(bob, GROUP, leave=["bob"]))
    info = pb.Request(group_info=pb.GroupInfo(conversation=GROUP))
    assert (await fra.ask(ann, info)).group_info_ok.members == ["ann", "carl", "eve"]
    assert code(await fra.ask(bob, info)) == Code.FORBIDDEN


@pytest.mark.parametrize("pushed_to", [500, 1])
async def test_who_is_out_of_a_group_is_told_so_by_sync_and_pull_and_nothing_else(
    open_idc: OpenIdc, pushed_to: int
) -> None:
    policy = Messages(replicated_timeout_ms=PATIENT_MS, push_group_members_max=pushed_to)
    fra = await open_idc(others=(), policy=policy)
    ann, bob, eve = fra.session("ann"), fra.session("bob"), fra.session("eve")
    await fra.create(ann, GROUP, "bob", "carl")

    async def left(since: bytes = b"") -> tuple[list[tuple[str, int]], bytes]:
        answer = (await fra.ask(bob, pb.Request(sync=pb.Sync(since=since)))).sync_ok
        rows = [(row.conversation, row.heads[0].seq) for row in answer.left]
        return rows, answer.token

    _, token = await left()
    await fra.send(ann, GROUP, 1)
    await fra.change(ann, GROUP, leave=["bob"])
    await fra.send(ann, GROUP, 2)
    await fra.folded()
    found, token = await left(token)
    assert found == [(GROUP, 3)]
    assert await left(token) == ([], token)
    pulled = (await fra.pull(bob, GROUP)).pull_ok
    [entry] = pulled.entries
    assert pulled.left and not pulled.heads and entry.seq == 3
    assert [(row.uid, row.member) for row in entry.membership.changes] == [("bob", False)]
    assert code(await fra.pull(eve, GROUP)) == Code.FORBIDDEN
    await fra.change(ann, GROUP, join=["bob"])
    assert [entry.seq for entry in (await fra.pull(bob, GROUP)).pull_ok.entries] == [1, 2, 3, 4, 5]
    assert (await left())[0] == []


async def test_a_group_has_a_limit_that_counts_who_leaves(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    many = [f"u{number:05}" for number in range(10_000)]
    assert code(await fra.create(ann, GROUP, *many[:500])) == Code.BAD_REQUEST  # in one request
    assert not code(await fra.create(ann, GROUP, *many[:499]))
    for begin in range(499, 9_999, 500):
        assert not code(await fra.change(ann, GROUP, join=many[begin : begin + 500]))
    assert code(await fra.change(ann, GROUP, join=["one-more"])) == Code.BAD_REQUEST
    assert not code(await fra.change(fra.session(many[0]), GROUP, leave=many[:1]))
    assert not code(await fra.change(ann, GROUP, join=["one-more"]))
    found: list[str] = []
    more = True
    while more:
        info = pb.GroupInfo(conversation=GROUP, after=found[-1] if found else "")
        page = (await fra.ask(ann, pb.Request(group_info=info))).group_info_ok
        assert page.count == 10_000 and page.ByteSize() < 100_000
        found += page.members
        more = page.more
    assert found == sorted({"ann", "one-more", *many[1:9_999]})
    fra.im.partitions[0].conversations.clear()  # as after a restart: read from its rows
    again = await fra.im.partitions[0].conversations.load(GROUP)
    assert list(again.members()) == found


async def test_who_is_on_the_way_into_a_group_counts(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=(), policy=Messages(group_members_max=10))
    ann = fra.session("ann")
    await fra.create(ann, GROUP, *(f"u{number}" for number in range(7)))
    joins = [fra.change(ann, GROUP, join=[f"v{number}"]) for number in range(5)]
    again = [fra.change(ann, GROUP, join=["v0"]), fra.change(ann, GROUP, join=["u0", "v1"])]
    codes = [code(response) for response in await asyncio.gather(*joins, *again)]
    assert codes == ["", "", *[Code.BAD_REQUEST] * 3, "", ""]
    info = pb.Request(group_info=pb.GroupInfo(conversation=GROUP))
    assert (await fra.ask(ann, info)).group_info_ok.count == 10
    assert not code(await fra.change(fra.session("v0"), GROUP, leave=["v0"]))
    assert not code(await fra.change(ann, GROUP, join=["v2"]))


async def test_what_is_kept_of_a_membership_goes_once_another_idc_holds_it(
    open_idc: OpenIdc,
) -> None:
    fra = await open_idc(others=("iad",))
    fra.hurry()
    ann = fra.session("ann")
    answers = [code(await fra.create(ann, f"g:{number}", "bob", "carl")) for number in range(3)]
    assert answers == [Code.UNAVAILABLE] * 3
    fra.im.tick()
    assert len(fra.im.granted) == 3
    fra.hold("iad")
    fra.im.tick()
    assert not fra.im.granted


async def test_strangers_neither_send_nor_read(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann, eve = fra.session("ann"), fra.session("eve")
    await fra.create(ann, GROUP)
    for name in (GROUP, DIRECT, "g:nobody-made-it"):
        assert code(await fra.send(eve, name, 1)) == Code.FORBIDDEN
        assert code(await fra.pull(eve, name)) == Code.FORBIDDEN
        history = pb.Request(history=pb.History(conversation=name))
        assert code(await fra.ask(eve, history)) == Code.FORBIDDEN
    # Who has left is a stranger from then on.
    await fra.change(ann, GROUP, join=["bob"])
    await fra.change(fra.session("bob"), GROUP, leave=["bob"])
    assert code(await fra.send(fra.session("bob"), GROUP, 1)) == Code.FORBIDDEN


async def test_a_large_group_is_found_by_membership_and_stays_out_of_timelines(
    open_idc: OpenIdc,
) -> None:
    """Above 500 members one message would write a row for each of them."""
    fra = await open_idc(others=())
    ann, last = fra.session("ann"), fra.session("u0500")
    await fra.create(ann, GROUP, *(f"u{number:04}" for number in range(400)))
    await fra.change(ann, GROUP, join=[f"u{number:04}" for number in range(400, 501)])
    await fra.send(ann, GROUP, 1, b"to all")
    assert await fra.contents(last, GROUP) == [b"to all"]
    [(_, audience, _)] = [e for e in fra.pushes.entries if e[2].HasField("message")]
    assert len(audience) == 502
    synced = (await fra.ask(last, pb.Request(sync=pb.Sync()))).sync_ok
    assert [c.conversation for c in synced.conversations] == [GROUP]
    # Again with the token: a small one would be absent, unchanged; this one is always named.
    again = (await fra.ask(last, pb.Request(sync=pb.Sync(since=synced.token)))).sync_ok
    assert [c.conversation for c in again.conversations] == [GROUP]


async def test_a_group_that_is_not_large_any_more_is_in_everybodys_timeline(
    open_idc: OpenIdc,
) -> None:
    fra = await open_idc(others=(), policy=Messages(push_group_members_max=2))
    ann, bob = fra.session("ann"), fra.session("bob")
    await fra.create(ann, GROUP, "bob", "eve")
    await fra.folded()
    token = (await fra.ask(bob, pb.Request(sync=pb.Sync()))).sync_ok.token
    await fra.send(ann, GROUP, 1, b"while it was large")
    await fra.change(fra.session("eve"), GROUP, leave=["eve"])
    await fra.folded()
    for since in (b"", token):
        synced = (await fra.ask(bob, pb.Request(sync=pb.Sync(since=since)))).sync_ok
        assert [c.conversation for c in synced.conversations] == [GROUP]


# ------------------------------------------------------- groups and the loss of their IDC


async def test_a_group_is_answered_only_when_another_idc_holds_it(open_idc: OpenIdc) -> None:
    """It has no outbox: lost with its IDC, its members' messages would be refused elsewhere."""
    fra = await open_idc(policy=Messages(replicated_timeout_ms=5_000))
    ann = fra.session("ann")
    creating = asyncio.ensure_future(fra.create(ann, GROUP, "bob"))
    await until(lambda: bool(fra.pushes.entries))  # folded here
    await asyncio.sleep(0.05)
    assert not creating.done()
    # A member who has learnt of it by a push must not get an ack that the group's loss undoes.
    early = await fra.send(fra.session("bob"), GROUP, 1)
    assert code(early) == Code.UNAVAILABLE and early.error.retry_after_ms
    fra.hold("iad")
    assert not code(await creating)
    assert fra.pushes.stored[0] == (ann.id, fra.end())  # for the token of a move
    assert not code(await fra.send(fra.session("bob"), GROUP, 1))


async def test_a_group_that_nobody_else_holds_is_unavailable_and_may_be_asked_for_again(
    open_idc: OpenIdc,
) -> None:
    fra = await open_idc()
    fra.hurry()
    ann = fra.session("ann")
    refused = await fra.create(ann, GROUP)
    assert code(refused) == Code.UNAVAILABLE and refused.error.retry_after_ms
    assert code(await fra.create(ann, GROUP)) == Code.UNAVAILABLE  # it stands, but only here
    end = fra.end()
    fra.hold("iad")
    assert not code(await fra.create(ann, GROUP))
    assert fra.end() == end  # nothing was logged for asking again

    for verb in ("join", "leave"):
        change = {verb: ["bob"]}
        bob = fra.session("bob")
        assert code(await fra.change(bob, GROUP, **change)) == Code.UNAVAILABLE
        assert code(await fra.change(bob, GROUP, **change)) == Code.UNAVAILABLE
        await fra.folded()
        fra.hold("sin")
        assert not code(await fra.change(bob, GROUP, **change))


async def test_the_last_idc_in_service_does_not_wait_for_others(open_idc: OpenIdc) -> None:
    fra = await open_idc()
    fra.hurry()
    ann = fra.session("ann")
    fra.out = {"iad"}
    assert code(await fra.create(ann, GROUP)) == Code.UNAVAILABLE
    fra.hurry(False)
    fra.out = {"iad", "sin"}
    assert not code(await fra.create(ann, GROUP))
    assert not code(await fra.change(ann, GROUP, join=["bob"]))
    assert not code(await fra.send(fra.session("bob"), GROUP, 1))


async def test_a_membership_that_came_from_another_idc_is_answered_at_once(
    open_idc: OpenIdc,
) -> None:
    fra, iad = await open_idc(followers=("sin",)), await open_idc("iad.1", others=("fra", "sin"))
    ann = fra.session("ann")
    assert not code(await fra.create(ann, GROUP, "bob"))
    await fra.mirror_to(iad)
    assert not code(await iad.create(ann, GROUP, "bob"))
    assert not code(await iad.change(ann, GROUP, join=["bob"]))
    assert not code(await iad.send(ann, GROUP, 1))


# ------------------------------------------------------------------------ replicated acks


async def test_an_ack_waits_for_another_idc_when_that_is_asked_for(open_idc: OpenIdc) -> None:
    fra = await open_idc(policy=Messages(replicated_timeout_ms=5_000))
    ann = fra.session("ann")
    stored = (await fra.send(ann, DIRECT, 1)).send_ack
    assert not stored.replicated
    waiting = asyncio.ensure_future(fra.send(ann, DIRECT, 2, durability=REPLICATED))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    fra.hold("iad")
    ack = (await waiting).send_ack
    assert ack.replicated and not ack.degraded


@pytest.mark.parametrize("when", WhenUnreplicated)
async def test_the_policy_says_what_becomes_of_an_ack_that_cannot_be_had(
    open_idc: OpenIdc, when: WhenUnreplicated
) -> None:
    policy = Messages(ack="replicated", when_unreplicated=when, replicated_timeout_ms=50)
    fra = await open_idc(policy=policy)
    ann = fra.session("ann")
    for _ in range(2):  # the second is known
        response = await fra.send(ann, DIRECT, 1)
        if when is WhenUnreplicated.REFUSE:
            assert code(response) == Code.NOT_REPLICATED and response.error.retry_after_ms
        else:
            assert response.send_ack.degraded and not response.send_ack.replicated
    fra.hold("iad")
    ack = (await fra.send(ann, DIRECT, 1)).send_ack
    assert ack.outcome == pb.SendAck.KNOWN and ack.replicated and not ack.degraded
    assert await fra.contents(ann, DIRECT) == [b"hello"]


STRICT = Messages(
    ack="replicated",
    replicas=2,
    when_unreplicated=WhenUnreplicated.REFUSE,
    replicated_timeout_ms=50,
)


async def test_a_repeated_send_waits_for_as_many_idcs_as_the_first_one(open_idc: OpenIdc) -> None:
    """One IDC that held it used to be enough for an ack the second time."""
    fra = await open_idc(policy=STRICT)
    ann = fra.session("ann")
    assert code(await fra.send(ann, DIRECT, 1)) == Code.NOT_REPLICATED
    fra.hold("iad")
    assert code(await fra.send(ann, DIRECT, 1)) == Code.NOT_REPLICATED
    fra.hold("sin")
    ack = (await fra.send(ann, DIRECT, 1)).send_ack
    assert ack.outcome == pb.SendAck.KNOWN and ack.replicated


async def test_a_message_of_another_idc_counts_only_the_idcs_that_hold_it(
    open_idc: OpenIdc,
) -> None:
    """Known here because it was mirrored: two hold it, and the policy asks for three."""
    iad = await open_idc("iad.1", others=("fra", "sin"))
    fra = await open_idc(policy=STRICT)
    ann = fra.session("ann")
    await iad.send(ann, DIRECT, 1)
    await iad.mirror_to(fra)
    assert code(await fra.send(ann, DIRECT, 1)) == Code.NOT_REPLICATED
    end = iad.end()
    fra.copies["sin", IAD] = {0: end - 1}
    assert code(await fra.send(ann, DIRECT, 1)) == Code.NOT_REPLICATED
    fra.copies["sin", IAD] = {0: end}
    ack = (await fra.send(ann, DIRECT, 1)).send_ack
    assert ack.outcome == pb.SendAck.KNOWN and ack.replicated and not ack.degraded


async def test_the_outbox_lets_go_once_one_other_idc_holds_it(open_idc: OpenIdc) -> None:
    """Rule 13, whatever the policy asks of acks."""
    fra = await open_idc(policy=Messages(replicas=2, replicated_timeout_ms=50))
    ann = fra.session("ann")
    await fra.send(ann, DIRECT, 1)
    fra.hold("iad")
    assert (await fra.send(ann, DIRECT, 1)).send_ack.replicated
    ack = (await fra.send(ann, DIRECT, 1, durability=REPLICATED)).send_ack
    assert ack.replicated and ack.degraded


# ---------------------------------------------------------------------------------- reading


async def test_sync_pages_lead_to_every_conversation_once(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=(), partitions=3)
    ann = fra.session("ann")
    names = sorted(f"d:ann:bob{number}" for number in range(17))
    for name in names:
        await fra.send(ann, name, 1)
    await until(lambda: len(fra.pushes.entries) == len(names))

    async def pages(since: bytes) -> tuple[list[str], bytes]:
        found: list[str] = []
        page = b""
        while True:
            request = pb.Request(sync=pb.Sync(since=since, limit=3, page=page))
            answer = (await fra.ask(ann, request)).sync_ok
            assert len(answer.conversations) <= 3
            found += [c.conversation for c in answer.conversations]
            page = answer.next_page
            if not page:
                return found, answer.token

    everything, token = await pages(b"")
    assert sorted(everything) == names
    assert await pages(token) == ([], token)
    await fra.send(ann, names[4], 2)
    await until(lambda: len(fra.pushes.entries) == len(names) + 1)
    assert (await pages(token))[0] == [names[4]]
    assert (await pages(b"x" * len(token)))[0].sort() == names.sort()  # of another log's life


async def test_a_read_cursor_only_rises_and_goes_to_the_users_devices(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann, bob = fra.session("ann"), fra.session("bob")
    places = [(await fra.send(ann, DIRECT, cid)).send_ack.placed.place for cid in (1, 2)]

    async def read(place: pb.Place) -> pb.Response:
        cursor = pb.ReadCursor(conversation=DIRECT, place=place)
        return await fra.ask(bob, pb.Request(read_cursor=cursor))

    assert not code(await read(places[1]))
    assert not code(await read(places[0]))
    await until(lambda: bool(fra.pushes.cursors))
    [(uid, moved)] = fra.pushes.cursors  # the lower one moves nothing
    assert uid == "bob" and moved.place == places[1]
    cursor = pb.ReadCursor(conversation=DIRECT, place=places[0])
    refused = await fra.ask(fra.session("eve"), pb.Request(read_cursor=cursor))
    assert code(refused) == Code.FORBIDDEN


async def test_an_origin_is_announced_as_sealed_only_at_its_seal(open_idc: OpenIdc) -> None:
    """A client forgets what it has above the end of a sealed origin: were it told so while the
    fold is behind, it would drop entries that everybody else keeps."""
    iad = await open_idc("iad.1", others=("fra", "sin"))
    fra = await open_idc()
    ann = fra.session("ann")
    for cid in (1, 2, 3):
        await iad.send(ann, DIRECT, cid)
    seal = iad.end()
    await iad.mirror_to(fra, upto=seal - 1)
    fra.suspended[IAD] = False

    async def told() -> tuple[int, bool]:
        [suspended] = (await fra.pull(ann, DIRECT)).pull_ok.suspended
        assert origin_of(suspended.origin) == IAD
        return suspended.end, suspended.sealed

    assert await told() == (2, False)
    fra.suspended[IAD], fra.seals[IAD] = True, seal
    assert await told() == (2, False)  # the third one still comes
    await iad.mirror_to(fra)
    assert await told() == (3, True)
    fra.seals[IAD] = seal - 1  # folded beyond it: what is above is still to be taken out
    assert await told() == (3, False)


# ---------------------------------------------------------------------------- hostile input

HOSTILE = [
    f"d:{'a' * 600}:ann",
    f"d:ann:{'b' * 600}",
    f"d:ann:{'b' * 65}",
    "d:ann:bob\0",
    "d:ann:b\0b",
    "d:ann:",
    "d::ann",
    f"g:{'a' * 600}",
    "g:a\0b",
    "g:",
    "nonsense",
    "",
]


def requests(name: str) -> list[pb.Request]:
    place = pb.Place(hlc=1, origin=pb.Origin(idc="fra", incarnation=1), seq=1)
    return [
        pb.Request(send=pb.Send(conversation=name, outbox="o1", cid=1, floor=1)),
        pb.Request(pull=pb.Pull(conversation=name)),
        pb.Request(history=pb.History(conversation=name)),
        pb.Request(read_cursor=pb.ReadCursor(conversation=name, place=place)),
        pb.Request(claim=pb.Claim(conversation=name)),
        pb.Request(set_conversation=pb.SetConversation(conversation=name, pinned=True)),
        pb.Request(readers=pb.Readers(message=pb.ClientKey(conversation=name))),
        pb.Request(group_info=pb.GroupInfo(conversation=name)),
        pb.Request(group_create=pb.GroupCreate(conversation=name)),
        pb.Request(group_change=pb.GroupChange(conversation=name, join=["ann"])),
    ]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
async def test_ids_that_are_no_keys_are_refused_by_every_verb(open_idc: OpenIdc, name: str) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    end = fra.end()
    for request in requests(name):
        response = await fra.ask(ann, request)
        assert code(response) == Code.BAD_REQUEST, request
    assert fra.end() == end
    connect = pb.Connect(outbox=[pb.OutboxHead(conversation=name, outbox="o1", floor=1, top=9)])
    assert await fra.im.connected(ann, connect) == []
    # Above all: the partition goes on.
    assert not code(await fra.send(ann, DIRECT, 1))
    assert await fra.contents(ann, DIRECT) == [b"hello"]


async def test_other_ids_that_become_parts_of_keys_are_refused(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    await fra.create(ann, GROUP)
    token = (await fra.ask(ann, pb.Request(sync=pb.Sync()))).sync_ok.token
    for bad in ("x" * 65, "x" * 600, "a\0b", "a b", "ü"):
        far = pb.Place(hlc=1, origin=pb.Origin(idc=bad, incarnation=1), seq=1)
        after = pb.Sync(page=b"\0\0" + token + f"d:ann:{bad}".encode())
        hostile = [
            pb.Request(send=pb.Send(conversation=DIRECT, outbox=bad, cid=1, floor=1)),
            pb.Request(history=pb.History(conversation=DIRECT, before=far)),
            pb.Request(read_cursor=pb.ReadCursor(conversation=DIRECT, place=far)),
            pb.Request(group_create=pb.GroupCreate(conversation="g:new", members=[bad])),
            pb.Request(group_change=pb.GroupChange(conversation=GROUP, join=[bad])),
            pb.Request(sync=after),
        ]
        for request in hostile:
            assert code(await fra.ask(ann, request)) == Code.BAD_REQUEST, request
        head = pb.OutboxHead(conversation=DIRECT, outbox=bad, floor=1, top=9)
        assert await fra.im.connected(ann, pb.Connect(outbox=[head])) == []


async def test_a_forged_claim_is_not_taken(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    placed = (await fra.send(ann, DIRECT, 1)).send_ack.placed
    await until(lambda: bool(fra.pushes.entries))
    forged = pb.Attested()
    forged.CopyFrom(placed)
    forged.place.hlc = 1
    end = fra.end()
    claim = pb.Request(claim=pb.Claim(conversation=DIRECT, claims=[forged]))
    assert not code(await fra.ask(ann, claim))
    assert fra.end() == end


# -------------------------------------------------------------------------------- connects


class CountingKv:
    """The real KV, with a count of what is asked of it."""

    def __init__(self, idc: Idc) -> None:
        self._kv, self.scans, self.rows = idc.kv, 0, 0

    async def scan(
        self, start: bytes, end: bytes, limit: int, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        rows = await self._kv.scan(start, end, limit, reverse)
        self.scans, self.rows = self.scans + 1, self.rows + len(rows)
        return rows

    def __getattr__(self, name: str) -> object:
        return getattr(self._kv, name)


async def known_of(idc: Idc, connect: pb.Connect) -> tuple[list[pb.KnownCids], CountingKv, int]:
    """What a Connect is answered, what it asked of the KV, and how often others had a turn."""
    counting = CountingKv(idc)
    idc.im.kv = counting  # type: ignore[assignment]
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    found = await idc.im.connected(idc.session("ann"), connect)
    task.cancel()
    return found, counting, turns


async def fill(idc: Idc, count: int) -> None:
    """So many messages of one lane, folded."""
    ann = idc.session("ann")
    await asyncio.gather(*(idc.send(ann, DIRECT, cid) for cid in range(1, count + 1)))
    await until(lambda: len(idc.pushes.entries) == count)


def head(floor: int = 1, top: int = 0, conversation: str = DIRECT) -> pb.OutboxHead:
    return pb.OutboxHead(conversation=conversation, outbox="o1", floor=floor, top=top)


async def test_a_connect_lists_the_known_cids_of_its_outbox(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    await fill(fra, 7)
    found, _, _ = await known_of(fra, pb.Connect(outbox=[head(3, 5), head(1, 1, "d:ann:carl")]))
    assert found == [
        pb.KnownCids(conversation=DIRECT, ranges=[pb.CidRange(first=3, last=5)]),
    ]
    found, _, _ = await known_of(fra, pb.Connect(outbox=[head(2)]))
    assert found[0].ranges == [pb.CidRange(first=2, last=7)]


async def test_a_connect_that_repeats_a_head_has_it_read_once(open_idc: OpenIdc) -> None:
    """A thousand of the same lane were a thousand scans of it, and the loop stood still."""
    fra = await open_idc(others=())
    await fill(fra, 600)
    connect = pb.Connect(outbox=[head(2, 9), head(1, 600)] * 500)
    found, asked, turns = await known_of(fra, connect)
    assert found == [
        pb.KnownCids(conversation=DIRECT, ranges=[pb.CidRange(first=1, last=600)]),
    ]
    assert asked.rows == 600 and asked.scans <= 4 and turns


async def test_the_work_for_one_connect_is_bounded_and_lets_others_go_on(
    open_idc: OpenIdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "ROWS_MAX", 500)
    fra = await open_idc(others=())
    await fill(fra, 600)
    many = [head(1, 9, f"d:ann:bob{number}") for number in range(2_000)]
    found, asked, turns = await known_of(fra, pb.Connect(outbox=[*many[:900], head(1, 600), *many]))
    # The first ones: what is not listed is offered by the client, and answered as known.
    assert found == [
        pb.KnownCids(conversation=DIRECT, ranges=[pb.CidRange(first=1, last=500)]),
    ]
    assert asked.rows == 500 and asked.scans <= known.HEADS_MAX + 2
    assert turns >= 900 * 16 // 512
    assert not code(await fra.send(fra.session("ann"), DIRECT, 600))


# ----------------------------------------------------------------- attested places (rule 12)


async def test_an_attested_place_is_kept_and_a_hash_of_another_length_is_not_one(
    open_idc: OpenIdc,
) -> None:
    iad, fra = await open_idc("iad.1", others=("fra", "sin")), await open_idc()
    ann = fra.session("ann")
    placed = (await iad.send(ann, DIRECT, 1)).send_ack.placed
    ack = (await fra.send(ann, DIRECT, 1, placed=placed)).send_ack
    assert ack.placed.place == placed.place
    key = ClientKey("ann", "phone", "o1", DIRECT, 2)
    early = KEYS.attest(key, content_hash(b"hello")[:8], FRA, 9, Place(1, FRA, 9))
    ack = (await fra.send(ann, DIRECT, 2, placed=attested_pb(early))).send_ack
    assert ack.outcome == pb.SendAck.ACCEPTED and ack.placed.place.hlc > placed.place.hlc
