"""What clients ask of the KV: pulls by position, history by place, what has changed, members.

An answer takes several reads, and the applier may commit between them. What it adds does no harm;
what it moves (a class to a smaller place, a class to another copy) would make a page with a hole,
so it is noticed (``Moved``), and the page is read again. A rebuild is the caller's to notice.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Sequence

from imcore.attest import RegionKeys
from imcore.convert import attested_of, fill_positions, key_of, origin_of, place_of
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, Place, Vector
from services.im import entries, keys
from services.im.conversation import Conversation
from services.im.fold import Entry, named_by
from services.ports import Kv

PULL_LIMIT = 200
SYNC_LIMIT = 200
PAGE_BYTES_MAX = 128 * 1024  # of a page's entries: half of what one message of the protocol holds
_BUILT_BYTES = 256  # about what building adds to a stored op: place, attestation


class Moved(Exception):
    """What one read has found was not so any more for the next one: read again."""


def bounded(limit: int) -> int:
    """How many entries a page has at most, whatever a client asks for."""
    return max(1, min(limit or PULL_LIMIT, PULL_LIMIT))


async def _entries(
    kv: Kv, partition: int, found: Sequence[tuple[Origin, oplog.Op]], region_keys: RegionKeys
) -> list[pb.Entry]:
    """Messages get the place of their class as it is known here now."""
    named = [key for _, op in found if (key := named_by(op)) is not None]
    class_keys = [keys.client_key(partition, key) for key in named]
    rows = dict(zip(class_keys, await kv.get_many(class_keys), strict=True))
    built = []
    for origin, op in found:
        entry = Entry(origin, op)
        if op.HasField("message"):
            stored = rows[keys.client_key(partition, key_of(op.message.key))]
            row = oplog.ClassRow.FromString(stored or b"")
            if not row.copies:
                raise Moved
            first = row.copies[0]
            entry.place = place_of(row.place)
            entry.alias = (origin_of(first.origin), first.seq) != (origin, op.seq)
            entry.recalled = row.changes.recalled
        elif op.HasField("change"):
            stored = rows[keys.client_key(partition, key_of(op.change.key))]
            entry.recalled = oplog.ClassRow.FromString(stored or b"").changes.recalled
        built.append(entries.build(entry, region_keys))
    return built


def _fitting(sizes: Iterable[int]) -> int:
    """How many of these stored ops, from the first on, make one page; at least one, so that
    every page makes progress."""
    count = room = 0
    for size in sizes:
        room += size + _BUILT_BYTES
        if count and room > PAGE_BYTES_MAX:
            break
        count += 1
    return count


async def pull(
    kv: Kv,
    partition: int,
    conversation: Conversation,
    have: Vector,
    limit: int,
    region_keys: RegionKeys,
) -> tuple[list[pb.Entry], bool]:
    """Entries above ``have``, by HLC, at most ``limit`` and PAGE_BYTES_MAX; second: whether there
    is more.

    Within an origin HLC rises with seq, so a page cut by HLC is a prefix of every origin. Nothing
    above the heads of ``conversation`` is shown, whatever is committed meanwhile. Raises Moved.
    """
    limit = bounded(limit)
    found: list[tuple[int, Origin, int, oplog.Op, int]] = []
    for origin, head in conversation.heads.items():
        start = have.get(origin, 0) + 1
        if start > head:
            continue
        rows = await kv.scan(
            keys.entry(partition, conversation.id, origin, start),
            keys.entry(partition, conversation.id, origin, head + 1),
            limit + 1,
        )
        for _, value in rows:
            op = oplog.Op.FromString(value)
            found.append((op.hlc, origin, op.seq, op, len(value)))
    page = heapq.nsmallest(limit, found, key=lambda item: item[:3])
    page = page[: _fitting(item[4] for item in page)]
    return await _entries(kv, partition, [(i[1], i[3]) for i in page], region_keys), (
        len(found) > len(page)
    )


async def history(
    kv: Kv,
    partition: int,
    conversation: Conversation,
    before: Place | None,
    limit: int,
    region_keys: RegionKeys,
) -> tuple[list[pb.Entry], bool]:
    """The last messages by place below ``before`` (None: from the end), in ascending order; at
    most ``limit`` and PAGE_BYTES_MAX. Raises Moved."""
    limit = bounded(limit)
    prefix = keys.order_prefix(partition, conversation.id)
    end = (
        keys.prefix_end(prefix)
        if before is None
        else keys.order_at(partition, conversation.id, before)
    )
    rows = await kv.scan(prefix, end, limit + 1, reverse=True)
    identities = [keys.identity_from(value) for _, value in rows[:limit]]
    stored = await kv.get_many(
        [keys.entry(partition, conversation.id, origin, seq) for origin, seq in identities]
    )
    kept = _fitting(len(value or b"") for value in stored)  # the newest ones
    found = []
    for (origin, _), value in zip(identities[:kept], stored[:kept], strict=True):
        if value is None:
            raise Moved
        found.append((origin, oplog.Op.FromString(value)))
    built = await _entries(kv, partition, found[::-1], region_keys)
    for entry, (order_key, _) in zip(reversed(built), rows, strict=False):
        # The next page begins below this one's places: they must be those that it was found by.
        placed = attested_of(entry.message.placed)
        if entry.message.alias or order_key != keys.order(partition, placed.place, placed.key):
            raise Moved
    return built, len(rows) > kept


async def changed_conversations(
    kv: Kv, partition: int, uid: str, since: int, after: str, limit: int
) -> list[tuple[str, bool]]:
    """Names of the user's conversations in this partition, above ``after`` in name order, that
    changed since that timeline number; second: whether it is a group known by membership alone
    (too large for the timeline)."""
    prefix = keys.timeline_prefix(partition, uid)
    start = prefix + after.encode() + (b"\0" if after else b"")
    names: dict[str, bool] = {}
    while len(names) < limit:
        rows = await kv.scan(start, keys.prefix_end(prefix), SYNC_LIMIT)
        for key, value in rows:
            if keys.number_from(value) > since:
                names[key[len(prefix) :].decode()] = False
        if len(rows) < SYNC_LIMIT:
            break
        start = rows[-1][0] + b"\0"
        await asyncio.sleep(0)  # a KV need not suspend, and a user may have thousands
    prefix = keys.member_prefix(partition, uid)
    start = prefix + after.encode() + (b"\0" if after else b"")
    for key, _ in await kv.scan(start, keys.prefix_end(prefix), limit):
        names.setdefault(key[len(prefix) :].decode(), True)
    return sorted(names.items())[:limit]


def heads(conversation: Conversation, stable: int) -> pb.ConversationHeads:
    state = pb.ConversationHeads(conversation=conversation.id, stable=stable)
    fill_positions(state.heads, conversation.heads)
    return state
