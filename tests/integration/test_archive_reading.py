"""What an IDC gives to an archive: each message once, in the range of its first acceptance."""

from __future__ import annotations

from typing import Any

from imcore.convert import stamp_pb
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.proto import peer_pb2 as peer
from imcore.words import Origin
from services.im import archived, keys
from services.im.archived import closed_hlc
from services.im.testing import KEYS, Idc, OpenIdc

DIRECT = "d:ann:bob"
FRA, IAD, OLD = Origin("fra", 2), Origin("iad", 1), Origin("fra", 1)
ALL = 1 << 62


async def rows(idc: Idc, after: int = 0, until: int = ALL) -> list[peer.ArchivedMessage]:
    await idc.folded()
    return [row async for page in archived.read(idc.kv, 0, after, until) for row in page]


def told(found: list[peer.ArchivedMessage]) -> list[tuple[int, bytes, bool]]:
    """cid, content, whether it is an older message that has changed."""
    return [(row.key.cid, row.content, row.again) for row in found]


async def change(idc: Idc, placed: pb.Attested, **what: Any) -> None:
    composed = stamp_pb(KEYS.stamp(idc.im.hlc.last))
    request = pb.Request(change=pb.Change(message=placed, composed=composed, **what))
    assert not (await idc.ask(idc.session("ann"), request)).error.code


async def test_ranges_hold_each_message_once_and_what_has_changed_of_earlier_ones(
    open_idc: OpenIdc,
) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    placed = [(await fra.send(ann, DIRECT, n, b"%d" % n)).send_ack.placed for n in range(1, 6)]
    await fra.folded()
    cut = fra.im.hlc.last
    await fra.send(ann, DIRECT, 6, b"6")
    await fra.folded()
    assert told(await rows(fra, 0, cut)) == [(n, b"%d" % n, False) for n in range(1, 6)]
    await change(fra, placed[0], edit=b"one")
    await change(fra, placed[1], recall=pb.Recall())
    await change(fra, placed[2], edit=b"three")
    await change(fra, placed[2], recall=pb.Recall())
    later = await rows(fra, cut)
    assert told(later)[0] == (6, b"6", False)
    by_cid = {row.key.cid: row for row in later if row.again}
    assert sorted(by_cid) == [1, 2, 3]
    assert (by_cid[1].content, by_cid[1].edited) == (b"one", True)
    assert by_cid[2].recalled and by_cid[3].recalled
    # Who reads the first range only now is not given what was recalled since.
    again = await rows(fra, 0, cut)
    assert told(again) == [
        (1, b"one", False), (2, b"", False), (3, b"", False), (4, b"4", False), (5, b"5", False),
    ]  # fmt: skip
    assert not again[1].content_hash and again[3].content_hash


async def test_a_range_is_found_in_the_middle_of_a_long_conversation(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann, accepted = fra.session("ann"), []
    for number in range(1, 451):
        await fra.send(ann, DIRECT, number, b"%d" % number)
        accepted.append(fra.im.hlc.last)
    await fra.send(fra.session("eve"), "d:bob:eve", 1, b"elsewhere")
    assert len(await rows(fra)) == 451
    found = await rows(fra, accepted[216], accepted[433])
    assert [row.key.cid for row in found] == list(range(218, 435))
    assert await rows(fra, fra.im.hlc.last) == []


async def test_a_message_that_was_accepted_twice_is_one(open_idc: OpenIdc) -> None:
    """As when a survivor publishes again what a lost IDC had accepted."""
    fra = await open_idc("fra.1", others=("iad",), followers=("iad",))
    iad = await open_idc("iad.1", others=("fra",), followers=("fra",))
    await fra.send(fra.session("ann"), DIRECT, 1, b"one")
    await fra.mirror_to(iad)
    cut = max(fra.im.hlc.last, iad.im.hlc.last)
    assert told(await rows(iad, 0, cut)) == [(1, b"one", False)]
    original = await iad.kv.get(keys.entry(0, DIRECT, OLD, 1))
    await iad.im.partitions[0].republish(OLD, [oplog.Op.FromString(original or b"")])
    await iad.mirror_to(fra)
    for idc in (fra, iad):
        assert told(await rows(idc)) == [(1, b"one", False)]
        assert told(await rows(idc, 0, cut)) == [(1, b"one", False)]
        assert told(await rows(idc, cut)) == [(1, b"one", True)]


def test_nothing_is_closed_that_an_idc_could_still_add_to() -> None:
    closed = {FRA: 70, IAD: 50, OLD: 20}
    assert closed_hlc(closed, {}, [FRA, IAD], {}) == 50
    assert closed_hlc(closed, {}, [FRA], {}) == 70  # iad is retired
    assert closed_hlc(closed, {}, [FRA, Origin("sin", 1)], {}) == 0  # never heard of
    assert closed_hlc(closed, {OLD: 4}, [FRA, IAD], {OLD: 5}) == 20  # not folded to its seal
    assert closed_hlc(closed, {OLD: 5}, [FRA, IAD], {OLD: 5}) == 50
    assert closed_hlc(closed, {OLD: 5}, [OLD, IAD], {OLD: 5}) == 0  # its successor is not known
    assert closed_hlc(closed, {}, [], {}) == 0
