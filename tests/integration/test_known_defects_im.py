"""Known defects of systems like this, in the im role, on its real engines.

Each test fails when its fix is taken out.
"""

from __future__ import annotations

import asyncio

from imcore.convert import origin_of, place_of
from imcore.proto import client_pb2 as pb
from imcore.words import Origin, Vector
from services.im.pulls import Pulls
from services.im.testing import FixedWall, Idc, OpenIdc

DIRECT = "d:ann:bob"
NAMES = ("fra", "iad", "sin")


async def test_duplicate_checks_per_connection_instead_of_per_conversation(
    open_idc: OpenIdc,
) -> None:
    """The fix: cids are judged by the partition's sequencer per lane (user, device, outbox,
    conversation) and, once folded, by the class row of the client key in the KV; never by
    what one connection has seen. So a retry by another connection is the same message: while the
    first is on its way to the log, once it is folded, and after a restart."""
    fra = await open_idc(others=())
    before, after = fra.session("ann"), fra.session("ann")  # a device that has reconnected

    # Pending: both are under way at the same time.
    first, second = await asyncio.gather(fra.send(before, DIRECT, 1), fra.send(after, DIRECT, 1))
    assert sorted((first.send_ack.outcome, second.send_ack.outcome)) == [
        pb.SendAck.ACCEPTED,
        pb.SendAck.KNOWN,
    ]
    assert first.send_ack.placed == second.send_ack.placed

    # Folded.
    await fra.folded()
    third = await fra.send(fra.session("ann"), DIRECT, 1)
    assert third.send_ack.outcome == pb.SendAck.KNOWN
    assert third.send_ack.placed == first.send_ack.placed

    # After a restart nothing of it is in memory.
    await fra.stop()
    fra = await open_idc(others=())
    fourth = await fra.send(fra.session("ann"), DIRECT, 1)
    assert fourth.send_ack.outcome == pb.SendAck.KNOWN
    assert fourth.send_ack.placed == first.send_ack.placed
    assert await fra.contents(fra.session("bob"), DIRECT) == [b"hello"]


async def three(open_idc: OpenIdc, each: int) -> Idc:
    """The first of three IDCs that have all messages of all; the n-th of each has the same HLC."""
    idcs = [
        await open_idc(f"{name}.1", others=[o for o in NAMES if o != name], clock=FixedWall())
        for name in NAMES
    ]
    for idc in idcs:
        ann = idc.session("ann", f"phone-{idc.origin.idc}")
        for cid in range(1, each + 1):
            ack = await idc.send(ann, DIRECT, cid, b"%s %d" % (idc.origin.idc.encode(), cid))
            assert ack.send_ack.outcome == pb.SendAck.ACCEPTED
    for idc in idcs[1:]:
        await idc.mirror_to(idcs[0])
    return idcs[0]


EACH = 4
EVERYTHING = sorted(b"%s %d" % (name.encode(), cid) for name in NAMES for cid in range(1, EACH + 1))


def assert_ties(entries: list[pb.Entry]) -> None:
    hlcs = {entry.hlc for entry in entries}
    assert len(entries) == EACH * len(NAMES) and len(hlcs) == EACH, "the HLCs are not equal"


async def test_equal_timestamps_losing_history_in_a_pull(open_idc: OpenIdc) -> None:
    """The fix: a position is a vector by origin, not a time. A page that ends between entries of
    one HLC goes on with the others of that HLC."""
    fra = await three(open_idc, EACH)
    bob = fra.session("bob")
    have: Vector = {}
    entries: list[pb.Entry] = []
    more = True
    while more:
        fra.im.pulls = Pulls(fra.im.kv, fra.im.keys)  # the KV answers: nothing is in memory
        pulled = (await fra.pull(bob, DIRECT, have, limit=1)).pull_ok
        [entry] = pulled.entries
        entries.append(entry)
        have[origin_of(entry.origin)] = entry.seq
        more = pulled.more
    assert_ties(entries)
    assert sorted(entry.message.content for entry in entries) == EVERYTHING
    assert have == {Origin(name, 1): EACH for name in NAMES}


async def test_equal_timestamps_losing_history_in_a_screen(open_idc: OpenIdc) -> None:
    """The fix: history goes back by place, (hlc, origin, seq), of which no two are equal."""
    fra = await three(open_idc, EACH)
    bob = fra.session("bob")
    request = pb.History(conversation=DIRECT, limit=1)
    shown: list[pb.Entry] = []
    more = True
    while more:
        found = (await fra.ask(bob, pb.Request(history=request))).pull_ok
        [entry] = found.entries
        shown.insert(0, entry)
        request.before.CopyFrom(entry.message.placed.place)
        more = found.more
    assert_ties(shown)
    assert sorted(entry.message.content for entry in shown) == EVERYTHING
    places = [place_of(entry.message.placed.place) for entry in shown]
    assert places == sorted(places)
