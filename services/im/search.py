"""Search in what a user's conversations say.

There is no index: with a row for each word a message of twelve words took a fifth more CPU, and the
KV was nearly three times as large, for what few ask for. The rows by place are looked at from the
newest down instead, which costs nothing until somebody searches, and what is found is what the
conversation says now, in every IDC alike: nothing that was recalled, and of a group nothing from
before the user joined. LOOKED_AT messages are looked at for one answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from imcore.convert import key_pb, place_of, place_pb
from imcore.errors import Code, Refused, Unavailable
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin, Place, valid_conversation, valid_id
from services.im import keys, reads
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.im.sync import changed_of
from services.im.text import Wanted
from services.ports import Kv, Session

if TYPE_CHECKING:
    from services.im.server import ImServer

LOOKED_AT = 2_000  # messages, for one answer
CONVERSATIONS_MAX = 500  # of one answer; of a user who is in more, so many at a time
CHUNK = 25  # rows in one turn of the loop
_LIMIT = 50  # messages of a page
_ROW_BYTES = 4096  # so much of a content counts as another row


class _Row(NamedTuple):
    stream: _Stream
    place: Place
    key: ClientKey
    identity: tuple[Origin, int]


class _Stream:
    """A conversation's rows by place, from the newest down, ``newest`` the next one."""

    def __init__(self, partition: Partition, conversation: Conversation, uid: str) -> None:
        self.partition = partition.number
        self.name = conversation.id
        joined = conversation.joined(uid)
        self._start = (
            keys.order_prefix(self.partition, self.name)
            if joined is None
            else keys.order_above(self.partition, self.name, joined)
        )
        self._rows: list[tuple[bytes, bytes]] = []
        self._end = b""
        self._step = 1
        self.newest: _Row | None = None

    def __lt__(self, other: _Stream) -> bool:
        """The heap's first is the one with the newest row."""
        assert self.newest is not None and other.newest is not None
        return self.newest.place > other.newest.place

    async def open(self, kv: Kv, before: Place | None) -> None:
        prefix = keys.order_prefix(self.partition, self.name)
        self._end = (
            keys.prefix_end(prefix)
            if before is None
            else keys.order_at(self.partition, self.name, before)
        )
        await self.advance(kv)

    async def advance(self, kv: Kv) -> None:
        if not self._rows and self._step:
            wanted = self._step
            found = await kv.scan(self._start, self._end, wanted, reverse=True)
            self._rows = found[::-1]
            self._step = CHUNK if len(found) == wanted else 0  # nothing is below these
            if found:
                self._end = found[-1][0]
        self.newest = None
        if self._rows:
            key, value = self._rows.pop()
            place, named = keys.placed_in(key, self.name)
            self.newest = _Row(self, place, named, keys.identity_from(value))


async def page(server: ImServer, session: Session, request: pb.Search) -> pb.Response:
    """Raises Refused, Overloaded, Unavailable."""
    try:
        wanted = Wanted(request.words)
    except ValueError as error:
        raise Refused(Code.BAD_REQUEST, str(error)) from error
    asked, name = request.page, request.conversation
    _check(server, asked)
    among, end = [await server.readable(session, name)] if name else [], None
    with server.looking.begun(session.uid, LOOKED_AT):
        begun = [partition.applier.begun for partition in server.partitions]
        if not name:
            among, end = await _conversations(server, session.uid, asked)
        limit = max(1, min(request.limit or _LIMIT, _LIMIT))
        below = place_of(asked.before) if asked.HasField("before") else None
        found, reached = await _search(server, session.uid, among, below, wanted, limit)
        if begun != [partition.applier.begun for partition in server.partitions]:
            raise Unavailable("what was searched is being folded again; ask again")
    answer = pb.SearchOk(found=found)
    following = answer.next_page
    if reached is not None:
        following.partition, following.after = asked.partition, asked.after
        following.before.CopyFrom(place_pb(reached))
        if end is not None:
            following.last_partition, following.last = end
    elif end is not None:
        following.partition, following.after = end
    else:
        answer.ClearField("next_page")
    return pb.Response(search_ok=answer)


def _check(server: ImServer, asked: pb.SearchPage) -> None:
    names = [name for name in (asked.after, asked.last) if name]
    if (
        max(asked.partition, asked.last_partition) >= len(server.partitions)
        or not all(map(valid_conversation, names))
        or (asked.HasField("before") and not valid_id(asked.before.origin.idc))
    ):
        raise Refused(Code.BAD_REQUEST, "the page is not one that a server gave out")


async def _conversations(
    server: ImServer, uid: str, asked: pb.SearchPage
) -> tuple[list[tuple[Partition, Conversation]], tuple[int, str] | None]:
    """By partition and name, CONVERSATIONS_MAX at most, and not beyond the last one that the page
    names. Second: where they end, None when no other comes after them."""
    found: list[tuple[Partition, Conversation]] = []
    number, after = asked.partition, asked.after
    last = (asked.last_partition, asked.last) if asked.last else None
    while number < len(server.partitions):
        partition = server.partitions[number]
        async with server.looking.turn():
            if partition.conversations.withheld:  # nobody may wait for that in his turn
                raise Unavailable("what is searched is being folded again; ask again")
            names = await changed_of(partition, uid, 0, after, reads.SYNC_LIMIT)
        for name, _ in names:
            if last is not None and (number, name) > last:
                return found, last
            if len(found) == CONVERSATIONS_MAX:
                return found, (number, after)
            conversation = await partition.conversations.load(name)
            if conversation.is_member(uid):
                found.append((partition, conversation))
            after = name
        if len(names) < reads.SYNC_LIMIT:
            number, after = number + 1, ""
    return found, None


async def _search(
    server: ImServer,
    uid: str,
    among: Sequence[tuple[Partition, Conversation]],
    below: Place | None,
    wanted: Wanted,
    limit: int,
) -> tuple[list[pb.FoundMessage], Place | None]:
    """What was found; second: the place down to which everything was looked at, None when nothing
    is left below."""
    heap: list[_Stream] = []
    for at in range(0, len(among), CHUNK):
        async with server.looking.turn():
            for partition, conversation in among[at : at + CHUNK]:
                stream = _Stream(partition, conversation, uid)
                await stream.open(server.kv, below)
                if stream.newest is not None:
                    heapq.heappush(heap, stream)
    found: list[pb.FoundMessage] = []
    looked_at, room = len(among), reads.PAGE_BYTES_MAX
    reached: Place | None = None
    while heap:
        if looked_at >= LOOKED_AT and reached is not None:  # every page makes progress
            return found, reached
        async with server.looking.turn():
            rows = await _newest(server.kv, heap)
            contents = await _contents(server.kv, rows)
            said = [wanted.said_in(content) for content, _ in contents]
        for row, (content, composed_ms), matches in zip(rows, contents, said, strict=True):
            looked_at += 1 + len(content) // _ROW_BYTES
            if matches:
                told = pb.FoundMessage(key=key_pb(row.key), place=place_pb(row.place))
                told.content, told.composed_ms = content, composed_ms
                room -= told.ByteSize()
                if len(found) == limit or (room < 0 and found):
                    return found, reached
                found.append(told)
            reached = row.place
    return found, None


async def _newest(kv: Kv, heap: list[_Stream]) -> list[_Row]:
    """The next rows of all conversations together."""
    rows: list[_Row] = []
    while heap and len(rows) < CHUNK:
        stream = heap[0]
        assert stream.newest is not None
        rows.append(stream.newest)
        await stream.advance(kv)
        if stream.newest is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, stream)
    return rows


async def _contents(kv: Kv, rows: Sequence[_Row]) -> list[tuple[bytes, int]]:
    """What they say now, and when they were composed; one that was recalled says nothing."""
    wanted = [keys.client_key(row.stream.partition, row.key) for row in rows]
    wanted += [keys.entry(row.stream.partition, row.stream.name, *row.identity) for row in rows]
    stored = await kv.get_many(wanted)
    found = []
    for named, entry in zip(stored[: len(rows)], stored[len(rows) :], strict=True):
        message = oplog.Op.FromString(entry or b"").message
        row = oplog.ClassRow.FromString(named or b"")
        content = b"" if message.encrypted else message.content
        if row.HasField("changes"):
            said = row.changes
            if said.recalled:
                content = b""
            elif said.HasField("edit"):
                content = b"" if said.edit.encrypted else said.edit.content
        found.append((content, message.composed_ms))
    return found
