"""What an archive is given: messages by the HLC at which they were first accepted.

Every copy of a message is an entry of its conversation. The *first* of them, by (HLC, origin, seq),
says in which range the message is; what happens to it in a later range (an edit, a recall, another
copy, another place) makes it be told there again, as a whole. So ranges that join hold each message
once, and again where it has changed since, and any IDC that has folded them tells the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import NamedTuple

from imcore.convert import key_of, key_pb, origin_of, origin_pb, place_of, place_pb, vector_of
from imcore.errors import Unavailable
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.proto import peer_pb2 as peer
from imcore.words import ClientKey, Origin, Vector
from services.im import keys
from services.ports import Kv

_PAGE = 200


class _Copy(NamedTuple):
    """Sorts by when it was accepted."""

    hlc: int
    origin: Origin
    seq: int


def closed_hlc(
    closed: Mapping[Origin, int],
    applied: Vector,
    current: Iterable[Origin],
    seals: Mapping[Origin, int],
) -> int:
    """At or below this HLC nothing can be added to a partition any more, by what is folded of it.

    ``current``: the origins under which IDCs accept, those of failed IDCs too: they may return with
    what nobody else has. ``seals``: where earlier incarnations end; what is not folded up to there
    is still to come. One that is sealed and still said to be current has a successor that is not
    known yet."""
    open_ = {origin: 0 if origin in seals else closed.get(origin, 0) for origin in current}
    for origin, lsn in seals.items():
        if applied.get(origin, 0) < lsn:
            open_[origin] = closed.get(origin, 0)
    return min(open_.values(), default=0)


async def read(
    kv: Kv, partition: int, after: int, until: int
) -> AsyncIterator[list[peer.ArchivedMessage]]:
    """Messages that were first accepted in the range after < HLC <= until, and earlier ones of
    which something changed in it (``again``; one may come several times). All as they are shown
    now. Raises Unavailable, also when the partition is folded again meanwhile."""
    start = keys.table(partition, b"h")
    end = keys.prefix_end(start)
    while True:
        page = await kv.scan(start, end, _PAGE)
        for key, row in page:
            name = keys.conversation_of(key)
            heads = vector_of(oplog.HeadsRow.FromString(row).heads)
            for origin in sorted(heads):
                part = _Part(kv, partition, name, origin, heads[origin])
                async for found in part.read(after, until):
                    yield found
        if len(page) < _PAGE:
            return
        start = page[-1][0] + b"\0"
        await asyncio.sleep(0)  # a KV need not suspend


class _Part:
    """What one origin accepted in one conversation."""

    def __init__(self, kv: Kv, partition: int, name: str, origin: Origin, head: int) -> None:
        self._kv = kv
        self._partition = partition
        self._name = name
        self._origin = origin
        self._head = head

    async def read(self, after: int, until: int) -> AsyncIterator[list[peer.ArchivedMessage]]:
        seq = await self._first_above(after)
        while seq <= self._head:
            stored = await self._from(seq, _PAGE)
            ops = [op for op in stored if op.hlc <= until]
            if ops and (found := await self._messages(ops, after)):
                yield found
            if len(ops) < _PAGE:
                return
            seq = ops[-1].seq + 1
            await asyncio.sleep(0)

    async def _from(self, seq: int, limit: int) -> list[oplog.Op]:
        rows = await self._kv.scan(self._entry(seq), self._entry(self._head + 1), limit)
        return [oplog.Op.FromString(value) for _, value in rows]

    def _entry(self, seq: int) -> bytes:
        return keys.entry(self._partition, self._name, self._origin, seq)

    async def _first_above(self, after: int) -> int:
        """The lowest seq above this HLC, head + 1 if there is none: the HLC rises with the seq."""
        if not after:
            return 1
        last = await self._kv.scan(self._entry(0), self._entry(self._head + 1), 1, reverse=True)
        if not last or oplog.Op.FromString(last[0][1]).hlc <= after:
            return self._head + 1
        low, high = 1, self._head
        while low < high:
            middle = (low + high) // 2
            found = await self._from(middle, 1)  # a seq may be missing (``fold.fits``)
            if found and found[0].hlc <= after:
                low = found[0].seq + 1
            else:
                high = middle
        return low

    async def _messages(self, ops: Sequence[oplog.Op], after: int) -> list[peer.ArchivedMessage]:
        named: dict[ClientKey, bool] = {}  # whether more than a place was said of it
        for op in ops:
            _name(op, named)
        class_keys = [keys.client_key(self._partition, key) for key in named]
        stored = await self._kv.get_many(class_keys)
        rows = {
            key: oplog.ClassRow.FromString(value)
            for key, value in zip(named, stored, strict=True)
            if value is not None
        }
        entries = await self._entries(ops, rows.values())
        here = {(self._origin, op.seq) for op in ops if op.HasField("message")}
        found = []
        for key, row in rows.items():
            if not row.copies:
                continue  # named before it has come
            copies = [(origin_of(copy.origin), copy.seq) for copy in row.copies]
            first = min(_Copy(entries[copy].hlc, *copy) for copy in copies)
            again = first.hlc <= after and (named[key] or _stands_elsewhere(row))
            if again or (first.origin, first.seq) in here:
                built = _built(key, row, entries[copies[0]].message, first.hlc)
                built.again = again
                found.append(built)
        return found

    async def _entries(
        self, ops: Sequence[oplog.Op], rows: Iterable[oplog.ClassRow]
    ) -> dict[tuple[Origin, int], oplog.Op]:
        """Of all copies. Nearly always these ops themselves."""
        found = {(self._origin, op.seq): op for op in ops}
        missing = [
            copy
            for row in rows
            for one in row.copies
            if (copy := (origin_of(one.origin), one.seq)) not in found
        ]
        wanted = [keys.entry(self._partition, self._name, *copy) for copy in missing]
        for copy, value in zip(missing, await self._kv.get_many(wanted), strict=True):
            if value is None:
                raise Unavailable("the partition is being folded again; ask again")
            found[copy] = oplog.Op.FromString(value)
        return found


def _name(op: oplog.Op, named: dict[ClientKey, bool]) -> None:
    claims: Iterable[pb.Attested] = ()
    if op.HasField("message"):
        named[key_of(op.message.key)] = True
        claims = op.message.claims
    elif op.HasField("change"):
        named[key_of(op.change.key)] = True
    elif op.HasField("place"):
        named.setdefault(key_of(op.place.key), False)
        claims = op.place.claims
    for claim in claims:
        named.setdefault(key_of(claim.key), False)


def _stands_elsewhere(row: oplog.ClassRow) -> bool:
    """At a place that none of its copies has: word of it came with another op."""
    return place_of(row.place) < min(place_of(copy.place) for copy in row.copies)


def _built(
    key: ClientKey, row: oplog.ClassRow, message: oplog.MessageOp, accepted: int
) -> peer.ArchivedMessage:
    shown = row.copies[0]
    built = peer.ArchivedMessage(
        key=key_pb(key), place=place_pb(place_of(row.place)), seq=shown.seq, accepted=accepted
    )
    built.origin.CopyFrom(origin_pb(origin_of(shown.origin)))
    built.composed_ms = message.composed_ms
    built.recalled = row.changes.recalled
    if not built.recalled:
        built.edited = row.changes.HasField("edit")
        built.content = row.changes.edit.content if built.edited else message.content
        built.content_hash, built.refs = message.content_hash, message.refs
    return built
