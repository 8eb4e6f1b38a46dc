"""Pages of pulls and histories fit one message of the client protocol, whatever they hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imcore import frame
from imcore.attest import RegionKeys, content_hash
from imcore.convert import key_pb
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin, Place
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.im import reads
from services.im.conversation import Conversation
from services.im.fold import Fold, Rows, Taken, needs
from services.ports import Batch, Record

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
NAME = "d:ann:bob"
KEYS = RegionKeys({1: b"k" * 32}, 1)
CONTENT_BYTES = 16_384  # the largest message of the default policy
EACH = 20


def stored(origin: Origin, seq: int, size: int) -> oplog.Op:
    op = oplog.Op(hlc=seq * 2 + (origin == IAD), conversation=NAME, seq=seq)
    key = ClientKey("ann", f"phone-{origin.idc}", "o1", NAME, seq)
    op.message.key.CopyFrom(key_pb(key))
    op.message.content = bytes([seq]) * size
    op.message.content_hash = content_hash(op.message.content)
    return op


@pytest.fixture
async def kv(tmp_path: Path) -> AsyncIterator[LmdbKv]:
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk())
    yield kv
    await kv.close()


async def fill(kv: LmdbKv, size: int) -> Conversation:
    """EACH messages of this size from each of two origins."""
    epoch, _ = await kv.open_partition(0)
    conversation = Conversation(NAME)
    known: dict[bytes, bytes] = {}
    for number, origin in enumerate((FRA, IAD), 1):
        ops = [stored(origin, seq, size) for seq in range(1, EACH + 1)]
        rows = Rows({key: known.get(key) for key in needs(0, ops)})
        taken = [Taken(Record(0, 1, op.seq, b"", op.SerializeToString()), op) for op in ops]
        Fold(0).batch(taken, origin, {NAME: conversation}, rows, number)
        known.update(rows.puts)
        await kv.commit(Batch(0, epoch, b"", rows.puts, rows.deletes))
    return conversation


def fits(entries: list[pb.Entry]) -> bool:
    response = pb.Response()
    response.pull_ok.entries.extend(entries)
    return len(frame.encode(frame.RESPONSE, 1, response.SerializeToString())) > 0


async def test_a_pull_of_large_messages_takes_pages_that_fit_and_lead_to_the_end(
    kv: LmdbKv,
) -> None:
    conversation = await fill(kv, CONTENT_BYTES)
    have: dict[Origin, int] = {}
    seen: list[int] = []
    pages, more = 0, True
    while more:
        entries, more = await reads.pull(kv, 0, conversation, have, 200, KEYS)
        assert entries and fits(entries)
        pages += 1
        for entry in entries:
            origin = Origin(entry.origin.idc, entry.origin.incarnation)
            assert entry.seq == have.get(origin, 0) + 1  # a page is a prefix of every origin
            have[origin] = entry.seq
            seen.append(entry.hlc)
    assert have == {FRA: EACH, IAD: EACH}
    assert seen == sorted(seen)
    assert pages >= 2 * EACH * CONTENT_BYTES // reads.PAGE_BYTES_MAX


async def test_history_pages_keep_the_newest_and_lead_back_to_the_start(kv: LmdbKv) -> None:
    conversation = await fill(kv, CONTENT_BYTES)
    before: Place | None = None
    shown: list[int] = []
    more = True
    while more:
        entries, more = await reads.history(kv, 0, conversation, before, 200, KEYS)
        assert entries and fits(entries)
        hlcs = [entry.hlc for entry in entries]
        assert hlcs == sorted(hlcs)
        shown = hlcs + shown
        place = entries[0].message.placed.place
        origin = Origin(place.origin.idc, place.origin.incarnation)
        before = Place(place.hlc, origin, place.seq)
    assert len(shown) == 2 * EACH
    assert shown == sorted(shown)


async def test_small_messages_come_in_one_page_and_the_limit_still_counts(kv: LmdbKv) -> None:
    conversation = await fill(kv, 100)
    entries, more = await reads.pull(kv, 0, conversation, {}, 200, KEYS)
    assert len(entries) == 2 * EACH and not more
    entries, more = await reads.pull(kv, 0, conversation, {}, 7, KEYS)
    assert len(entries) == 7 and more
    entries, more = await reads.history(kv, 0, conversation, None, 7, KEYS)
    assert [entry.seq for entry in entries][-1] == EACH and len(entries) == 7 and more


async def test_a_message_larger_than_a_page_is_a_page(kv: LmdbKv) -> None:
    conversation = await fill(kv, reads.PAGE_BYTES_MAX + 1)
    entries, more = await reads.pull(kv, 0, conversation, {}, 200, KEYS)
    assert len(entries) == 1 and more and fits(entries)
