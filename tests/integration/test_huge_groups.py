"""Huge groups: what is said in them is told at once, merged or by signals, as their heat says, and
takes nothing of what other conversations have."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imcore.attest import RegionKeys
from imcore.convert import key_pb
from imcore.packing import pack, unpack
from imcore.proto import client_pb2 as pb
from imcore.region.model import ClientParameters, Limits, Messages
from imcore.words import ClientKey, Origin
from services.gateway.config import GatewayConfig
from services.gateway.testing import FrameClient
from services.im import heat
from services.im.diffusion import Diffusion
from services.im.heat import Level
from services.im.testing import PATIENT_MS, Idc, OpenIdc
from services.ports import Audience
from services.sdk.testing.app import eventually
from services.state import outgoing
from services.state.session import Record
from services.state.testing import Front

FRA = Origin("fra", 1)
HUGE = "g:huge"
SMALL = Messages(replicated_timeout_ms=PATIENT_MS, push_group_members_max=2)
SILENT = GatewayConfig(idle_ms=600_000)
KEYS = RegionKeys({1: b"k" * 32}, 1)


async def huge(open_idc: OpenIdc, *groups: str, **limits: Any) -> Idc:
    """An IDC whose groups of three and more are huge, as if 10,000 of their members were here."""
    fra = await open_idc(others=(), policy=SMALL)
    fra.im.diffusion = Diffusion(fra.im, Limits(**limits))
    fra.pushes.present = 10_000
    for group in groups or (HUGE,):
        await fra.create(fra.session("ann"), group, "bob", "carl")
    await fra.folded()
    names = set(groups or (HUGE,))
    await eventually(lambda: {name for name, _, _ in fra.pushes.groups} == names)
    fra.pushes.groups.clear()
    fra.pushes.entries.clear()
    return fra


@pytest.fixture
def cools_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "RATE_S", 0.3)
    monkeypatch.setattr(heat, "HOLD_S", 0.5)


async def say(fra: Idc, count: int, first: int = 1, group: str = HUGE) -> list[bytes]:
    ann, said = fra.session("ann"), [b"%d" % cid for cid in range(first, first + count)]
    for cid, content in enumerate(said, first):
        assert not (await fra.send(ann, group, cid, content)).HasField("error")
    await fra.folded()
    return said


def pushed(fra: Idc, group: str = HUGE) -> list[bytes]:
    entries = [entry for name, _, entry in fra.pushes.entries if name == group]
    seqs = [entry.seq for entry in entries]
    assert seqs == sorted(set(seqs)), "not once and in order"
    return [entry.message.content for entry in entries if entry.HasField("message")]


async def test_a_quiet_huge_group_is_told_at_once(open_idc: OpenIdc) -> None:
    fra = await huge(open_idc, group_merge_deliveries_per_s=1_000_000)
    assert await say(fra, 1) == pushed(fra) == [b"1"]
    assert fra.pushes.groups == [(HUGE, 1, False)]


@pytest.mark.usefixtures("cools_fast")
async def test_what_a_hot_group_says_is_merged_and_it_recovers_by_itself(
    open_idc: OpenIdc,
) -> None:
    fra = await huge(
        open_idc,
        group_merge_deliveries_per_s=50_000,
        group_signal_deliveries_per_s=1_000_000_000,
        group_window_ms=500,
    )
    said = await say(fra, 60)
    assert fra.im.diffusion.level(HUGE) is Level.MERGED
    await eventually(lambda: pushed(fra) == said)
    merged = [count for _, count, merged in fra.pushes.groups if merged]
    assert len(fra.pushes.groups) < 30 and sum(merged) > 40
    await eventually(lambda: not fra.im.diffusion.levels())  # forgotten: nothing is kept of it
    fra.pushes.groups.clear()
    said += await say(fra, 1, 61)
    assert fra.pushes.groups == [(HUGE, 1, False)]
    assert pushed(fra) == said == await fra.contents(fra.session("bob"), HUGE)


@pytest.mark.usefixtures("cools_fast")
async def test_while_too_much_waits_at_a_gateway_even_a_cool_group_is_merged(
    open_idc: OpenIdc,
) -> None:
    limits = {"group_merge_deliveries_per_s": 1_000_000, "group_window_ms": 50}
    fra = await huge(open_idc, **limits, group_signal_deliveries_per_s=1_000_000_000)
    fra.pushes.crowd = 1_000_000
    said = await say(fra, 1)
    await eventually(lambda: pushed(fra) == said)
    cid = 1
    async with asyncio.timeout(20):
        while fra.im.diffusion.level(HUGE) is Level.AT_ONCE:
            cid += 1
            said += await say(fra, 1, cid)
            await asyncio.sleep(0.05)
    fra.pushes.crowd = 0
    await eventually(lambda: not fra.im.diffusion.levels())
    assert pushed(fra) == said


@pytest.mark.usefixtures("cools_fast")
async def test_beyond_a_rate_groups_are_signalled_together_and_nothing_is_pushed(
    open_idc: OpenIdc,
) -> None:
    limits = {"group_merge_deliveries_per_s": 50_000, "group_signal_deliveries_per_s": 50_000}
    fra = await huge(open_idc, HUGE, "g:other", group_signal_ms=500, **limits)
    for cid in range(1, 21):
        await say(fra, 1, cid)
        await say(fra, 1, cid, "g:other")
    heads = {name: {FRA: 21} for name in (HUGE, "g:other")}
    await eventually(lambda: heads in fra.pushes.behind)
    assert len(fra.pushes.behind) <= 6 and len(fra.pushes.groups) <= 6  # until they were hot
    said = [b"%d" % cid for cid in range(1, 21)]
    for group in (HUGE, "g:other"):
        assert await fra.contents(fra.session("bob"), group) == said
    assert fra.im.diffusion.counters.signalled >= 34
    await eventually(lambda: not fra.im.diffusion.levels())
    await say(fra, 1, 21)
    assert pushed(fra)[-1] == b"21"


@pytest.mark.usefixtures("cools_fast")
async def test_what_is_recalled_while_it_waits_goes_out_without_its_content(
    open_idc: OpenIdc,
) -> None:
    fra = await huge(open_idc, group_merge_deliveries_per_s=30_000, group_window_ms=700)
    ann = fra.session("ann")
    acks = [(await fra.send(ann, HUGE, cid, b"%d" % cid)).send_ack for cid in (1, 2)]
    recall = pb.Change(message=acks[0].placed, recall=pb.Recall(), composed=fra.im.stamp())
    assert not (await fra.ask(ann, pb.Request(change=recall))).HasField("error")
    await eventually(lambda: len(fra.pushes.entries) == 3)
    assert pushed(fra) == [b"", b"2"]


@pytest.mark.usefixtures("cools_fast")
async def test_who_leaves_is_told_what_was_said_before_and_nothing_after(
    open_idc: OpenIdc,
) -> None:
    fra = await huge(open_idc, group_merge_deliveries_per_s=30_000, group_window_ms=700)
    await say(fra, 1)
    await fra.change(fra.session("carl"), HUGE, leave=["carl"])
    await fra.change(fra.session("ann"), HUGE, join=["dora"])
    await say(fra, 1, 2)
    await eventually(lambda: len(fra.pushes.groups) == 1)
    to_carl = [entry for _, uids, entry in fra.pushes.entries if "carl" in uids]
    assert [entry.WhichOneof("kind") for entry in to_carl] == ["message", "membership"]
    to_all = [entry.seq for _, uids, entry in fra.pushes.entries if uids == ("ann", "bob", "dora")]
    assert to_all == [2, 3, 4, 5]


@pytest.mark.usefixtures("cools_fast")
async def test_nothing_that_was_folded_out_is_told(open_idc: OpenIdc) -> None:
    fra = await huge(open_idc, group_merge_deliveries_per_s=30_000, group_window_ms=700)
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",), policy=SMALL)
    await fra.mirror_to(iad)
    await iad.change(iad.session("bob"), HUGE, join=["bob"])
    for cid in (1, 2):
        await iad.send(iad.session("bob"), HUGE, cid, b"of iad %d" % cid)
    await iad.mirror_to(fra, iad.end())
    sealed = iad.end() - 1  # the second message does not count
    await say(fra, 1)
    assert not pushed(fra)
    await fra.im.partitions[0].applier.seal({Origin("iad", 1): sealed})
    await fra.folded()
    await eventually(lambda: len(fra.pushes.groups) == 1)
    assert sorted(e.message.content for _, _, e in fra.pushes.entries) == [b"1", b"of iad 1"]


# ----------------------------------------------------------------- in front of the clients


def entry(front: Front, number: int) -> pb.Entry:
    found = pb.Entry(seq=number, hlc=number)
    found.origin.idc, found.origin.incarnation = front.im.origin
    found.message.content = b"%d" % number
    key = ClientKey("u0", "phone", "o1", HUGE, number)
    found.message.placed.key.CopyFrom(key_pb(key))
    return found


async def crowd(front: Front, count: int) -> list[FrameClient]:
    return [(await front.connect(f"u{number}"))[0] for number in range(count)]


async def test_who_is_there_is_looked_up_when_somebody_comes_and_not_for_each_message() -> None:
    async with Front(KEYS, gateways=2) as front:
        await crowd(front, 20)
        audience = Audience(HUGE, tuple(sorted(f"u{number}" for number in range(1_000))))
        lookups = front.state._reached
        for number in range(1, 51):
            assert front.state.reached(audience) == 20
            front.state.push_group(audience, [entry(front, number)], {FRA: number}, 0, False)
        assert lookups.lookups == 1 and front.state.counters.pushed == 50 * 20
        late, _ = await front.connect("u500", gateway=1)
        assert front.state.reached(audience) == 21
        front.state.push_group(audience, [entry(front, 51)], {FRA: 51}, 0, False)
        assert (await late.event("push")).push.entries[0].message.content == b"51"
        late.abort()
        await eventually(lambda: front.state.connected_count() == 20)
        front.state.push_group(audience, [entry(front, 52)], {FRA: 52}, 0, False)
        assert (lookups.lookups, front.state.counters.pushed) == (1, 52 * 20 + 1)
        assert 0 < lookups.changes <= 4
        members = Audience(HUGE, audience.uids[1:])  # others left, or came
        assert front.state.reached(members) == 20 and lookups.lookups == 2


async def test_a_merged_push_is_one_event_and_is_named_again_later_than_others() -> None:
    async with Front(KEYS, parameters=ClientParameters(heartbeat_ms=1_000)) as front:
        [ann] = await crowd(front, 1)
        audience = Audience(HUGE, ("u0",))
        front.state.push_entries("d:a:u0", ["u0"], [entry(front, 1)], {FRA: 1}, 0)
        entries = [entry(front, number) for number in range(1, 11)]
        front.state.push_group(audience, entries, {FRA: 10}, 0, True)
        plain, merged = (await ann.event("push")).push, (await ann.event("push")).push
        assert (plain.merged, merged.merged) == (False, True)
        assert [e.seq for e in merged.entries] == list(range(1, 11))
        signals = [(await ann.event("signal")).signal.conversation for _ in range(3)]
        assert signals[0] == "d:a:u0" and HUGE in signals  # 2 s and 3.5 s after them


async def test_what_is_merged_holds_up_no_look_at_what_others_said() -> None:
    """And until its own patience is over nobody looks at it in vain: 10,000 sessions, each of them
    every 2 s, were a hold-up of milliseconds in every tick."""
    patient = ClientParameters(heartbeat_ms=60_000, idle_pull_ms=600_000)
    async with Front(KEYS, parameters=patient, speed=10.0, limits=SILENT) as front:
        ann, bob = await crowd(front, 2)
        audience = Audience(HUGE, ("u0", "u1"))
        looks: list[str] = []
        look = front.state._signal_owed

        def seen(record: Record) -> None:
            looks.append(record.uid)
            look(record)

        front.state._signal_owed = seen  # type: ignore[method-assign]
        front.state.push_group(audience, [entry(front, 1)], {FRA: 1}, 0, True)
        await ann.event("push")
        front.state.push_entries("d:a:u0", ["u0"], [entry(front, 1)], {FRA: 1}, 0)
        assert (await ann.event("signal", 1.0)).signal.conversation == "d:a:u0"
        assert looks and "u1" not in looks
        record = front.state._table.of_device("u0", "phone")
        assert record is not None
        record.ack("d:a:u0", {FRA: 1}, front.clock.now())
        looks.clear()
        await asyncio.sleep(2.5)  # 25 s of theirs: the first look was due, and no other
        assert looks in ([], ["u0"])
        front.state.push_group(audience, [entry(front, 2)], {FRA: 2}, 0, False)
        assert (await bob.event("signal", 1.0)).signal.conversation == HUGE


async def test_signals_to_thousands_are_no_hold_up_of_others() -> None:
    async with Front(KEYS) as front:
        clients = await crowd(front, 60)
        audience = Audience(HUGE, tuple(sorted(f"u{number}" for number in range(60))))
        front.state.push_group(audience, [entry(front, 1)], {FRA: 1}, 0, False)
        await asyncio.gather(*(client.event("push") for client in clients))
        records, state = list(front.state._table), front.state
        for owed in (record.owed[HUGE] for record in records):
            owed.merge({FRA: 2}, -10.0)
        before = state.counters.signalled
        state._look(records)  # as a tick does, when they are due together
        assert state.counters.signalled - before <= 16
        await asyncio.gather(*(client.event("signal") for client in clients))


async def test_a_large_push_is_packed_once_and_for_those_who_unpack_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packs: list[int] = []

    def counted(push: bytes) -> pb.Packed | None:
        packs.append(len(push))
        return pack(push)

    monkeypatch.setattr(outgoing, "pack", counted)
    async with Front(KEYS, gateways=2) as front:
        old = await crowd(front, 30)
        new = [
            (await front.connect(f"n{n}", gateway=n % 2, packings=[pb.PACKING_ZLIB]))[0]
            for n in range(30)
        ]
        uids = [f"n{number}" for number in range(30)] + [f"u{number}" for number in range(30)]
        audience = Audience(HUGE, tuple(sorted(uids)))
        entries = [entry(front, number) for number in range(1, 101)]
        front.state.push_group(audience, entries, {FRA: 100}, 7, True)
        plain = [(await client.event("push")).push for client in old]
        events = [await client.event("packed") for client in new]
        assert len(packs) == 1
        assert len({event.SerializeToString() for event in events}) == 1
        assert all(event.HasField("stamp") for event in events)
        packed = events[0].packed
        assert pb.Push.FromString(unpack(packed)) == plain[0] == plain[-1]
        assert [e.seq for e in plain[0].entries] == list(range(1, 101)) and plain[0].stable == 7
        assert packed.ByteSize() < 0.5 * packs[0]
        front.state.push_group(audience, entries[:2], {FRA: 100}, 7, True)  # of no use there
        assert len((await new[0].event("push")).push.entries) == 2
        for client in new:
            client.abort()
        await eventually(lambda: front.state.connected_count() == 30)
        packs.clear()
        front.state.push_group(audience, entries, {FRA: 100}, 7, True)
        assert len((await old[0].event("push")).push.entries) == 2
        assert len((await old[0].event("push")).push.entries) == 100
        assert not packs


async def test_signals_of_several_groups_are_one_event_for_each_user() -> None:
    async with Front(KEYS) as front:
        first, second = await crowd(front, 2)
        behind = [
            (Audience("g:1", ("u0", "u1")), {FRA: 7}, 5),
            (Audience("g:2", ("u1", "u2")), {FRA: 8}, 6),
        ]
        front.state.tell_behind(behind, 2_000)
        one, both = (await first.event("behind")).behind, (await second.event("behind")).behind
        assert [told.conversation for told in one.conversations] == ["g:1"]
        assert [told.conversation for told in both.conversations] == ["g:1", "g:2"]
        assert (both.within_ms, both.conversations[1].stable) == (2_000, 6)
        assert both.conversations[1].heads[0].seq == 8
        # Lost, it is named again as long as no ack says that it has come.
        record = front.state._table.of_device("u1", "phone")
        assert record is not None and set(record.owed) == {"g:1", "g:2"}


async def test_a_huge_group_takes_a_bounded_part_of_the_work(open_idc: OpenIdc) -> None:
    """Counted: what is written to connections. 200 messages to 100 members would be 20,000 writes,
    in whose queue the messages of others would stand."""
    fra = await huge(open_idc, group_merge_deliveries_per_s=10_000)
    async with Front(KEYS) as front:
        clients = await crowd(front, 100)
        audience = tuple(f"u{number}" for number in range(100))
        ordinary, between = 0, []
        [gateway] = front.gateways
        for cid in range(1, 201):
            fra.pushes.groups.clear()
            before = gateway.counters.pushed
            await say(fra, 1, cid)
            for _, count, merged in fra.pushes.groups:
                last = [entry(front, number) for number in range(cid - count + 1, cid + 1)]
                said = Audience(HUGE, audience)
                front.state.push_group(said, last, {FRA: cid}, 0, merged)
            if cid % 10 == 0:
                ordinary += 1
                front.im.push("d:u0:u1", [front.im.store("d:u0:u1", b"hi")])
                between.append(gateway.counters.pushed - before)
        assert gateway.counters.pushed < 20_000 / 2
        assert min(between) == 2, "an ordinary message stands behind no delivery of the group"
        for client in clients:
            client.abort()
        await asyncio.sleep(0)
