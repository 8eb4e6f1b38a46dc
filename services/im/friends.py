"""Friends: request, accept, decline, remove, block, and the list of them. The origin judges who
may; folds never judge again (rule 15).

What two users are to each other is kept with their direct conversation, so that one op tells both,
and that whoever sends in it is judged by what its partition holds. It does not hang on logins.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

from imcore.convert import stamp_of
from imcore.errors import Code, Refused
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import direct_conversation, valid_id
from services.im import groups, keys, listing, pair
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

_LIMIT = 200  # friends of a page, and rows of a scan
_PAGE = struct.Struct(">H")
_Word = pb.SetFriend
_WANTS = {_Word.REQUEST: True, _Word.ACCEPT: True, _Word.DECLINE: False, _Word.REMOVE: False}


async def set_one(server: ImServer, session: Session, request: pb.SetFriend) -> pb.Response:
    """Answered like a setting of a conversation. Raises Refused, Unavailable."""
    if not valid_id(request.uid) or request.uid == session.uid:
        raise Refused(Code.BAD_REQUEST, "a friend is named by uid, and somebody else")
    composed = server.keys.seen(stamp_of(request.composed))
    if not composed or request.word not in _Word.Word.values()[1:]:
        message = "a word on a friend says which, and a stamp that its device had seen"
        raise Refused(Code.BAD_REQUEST, message)
    word = oplog.FriendOp(actor=session.uid)
    word.order.hlc, word.order.device = composed, session.device
    word.order.number = request.number
    if request.word in _WANTS:
        word.wants = _WANTS[request.word]
    else:
        word.blocks = request.word == _Word.BLOCK
    name = direct_conversation(session.uid, request.uid)
    partition = server.partition(name)
    conversation = await partition.conversations.load(name)
    both = pair.pair_of(name)
    assert both is not None
    row = oplog.FriendRow()
    row.CopyFrom(conversation.friends)
    if pair.merge(row, both, word):
        _judge(conversation.friends, both, session.uid, request.word)
        seen = max(session.seen_hlc, composed)
        op = partition.sequencer.plain(name, server.clock.wall_ms(), seen)
        op.friend.CopyFrom(word)
        lsn = (await partition.append(op)).lsn
    else:  # so already; what made it so may still be held here only
        lsn = partition.applier.lsn(server.origin)
    await groups.settled(server, session, partition, lsn)
    return pb.Response(ok=pb.Ok())


def _judge(
    row: oplog.FriendRow, both: tuple[str, str], uid: str, word: pb.SetFriend.Word.ValueType
) -> None:
    """Raises Refused."""
    other = both[1] if uid == both[0] else both[0]
    if word in (_Word.REQUEST, _Word.ACCEPT):
        if pair.blocks(row, both, uid):
            raise Refused(Code.FORBIDDEN, f"{other!r} is blocked by this user")
        if pair.blocks(row, both, other):
            raise Refused(Code.BLOCKED, f"{other!r} has blocked this user")
    state = pair.told(row, both, uid).state
    asked = (pb.Friend.ASKING, pb.Friend.FRIEND) if word == _Word.ACCEPT else (pb.Friend.ASKING,)
    if word in (_Word.ACCEPT, _Word.DECLINE) and state not in asked:
        raise Refused(Code.NOT_FOUND, f"there is no request of {other!r} here (yet)")


async def page(server: ImServer, session: Session, request: pb.Friends) -> pb.Response:
    """Partition by partition, by uid in each."""
    number, after = listing.begin(server, request.page, valid_id)
    limit = max(1, min(request.limit or _LIMIT, _LIMIT))
    response = pb.Response()
    answer = response.friends_ok
    while number < len(server.partitions):
        found, after = await _of(server.partitions[number], session.uid, after, limit)
        answer.friends.extend(found)
        limit -= len(found)
        if not limit:
            answer.next_page = _PAGE.pack(number) + after.encode()
            return response
        number, after = number + 1, ""
        await asyncio.sleep(0)  # a KV need not suspend, and there may be many partitions
    return response


async def _of(
    partition: Partition, uid: str, after: str, limit: int
) -> tuple[list[pb.Friend], str]:
    """At most so many of one partition above ``after``, and how far they go. While a partition is
    folded again, they cannot be seen: it is waited for."""
    while True:
        await partition.conversations.whole()
        begun = partition.applier.begun
        found, reached = await _scanned(partition, uid, after, limit)
        if begun == partition.applier.begun:
            return found, reached


async def _scanned(
    partition: Partition, uid: str, after: str, limit: int
) -> tuple[list[pb.Friend], str]:
    prefix = keys.friends_prefix(partition.number, uid)
    start = prefix + after.encode() + (b"\0" if after else b"")
    found: list[pb.Friend] = []
    while True:
        rows = await partition.kv.scan(start, keys.prefix_end(prefix), _LIMIT)
        for key, value in rows:
            after = key[len(prefix) :].decode()
            low, high = sorted((uid, after))
            friend = pair.told(oplog.FriendRow.FromString(value), (low, high), uid)
            if friend.state or friend.blocked:
                found.append(friend)
            if len(found) == limit:
                return found, after
        if len(rows) < _LIMIT:
            return found, after
        start = rows[-1][0] + b"\0"
        await asyncio.sleep(0)


def tell(server: ImServer, name: str, before: oplog.FriendRow, after: oplog.FriendRow) -> None:
    """The connected devices of each of the two to whom the other is something else now."""
    both = pair.pair_of(name)
    assert both is not None
    for uid in both:
        friend = pair.told(after, both, uid)
        if friend != pair.told(before, both, uid):
            server.pushes.tell([uid], pb.Event(friend=friend))


def refusal(conversation: Conversation, uid: str) -> Refused | None:
    """Why this user may not write there now: the other one has blocked him."""
    both = pair.pair_of(conversation.id)
    if both is None:
        return None
    other = both[1] if uid == both[0] else both[0]
    if not pair.blocks(conversation.friends, both, other):
        return None
    return Refused(Code.BLOCKED, f"{other!r} has blocked this user")
