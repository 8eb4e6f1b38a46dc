"""The list of a user's conversations: unread counts, the last message, what is pinned and muted.

Nothing is counted when messages come: the rows by place are looked at when the list is asked for.
So a count is what the fold says, in every IDC alike. Unread is a message of somebody else that
stands above the user's read cursor, and in a group above where the user joined; a recalled one is
not. Of each conversation the newest LOOKED_AT messages are looked at and no more.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from imcore import changes
from imcore.convert import place_of, stamp_of
from imcore.errors import Code, Refused, Unavailable
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Place, valid_conversation
from services.im import groups, keys, reads
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.im.sync import changed_of
from services.ports import Kv, Session

if TYPE_CHECKING:
    from services.im.server import ImServer

LOOKED_AT = 200
_LIMIT = 50  # conversations of a page
_PAGE = struct.Struct(">H")
_READ_AGAIN = 10  # times, a conversation that changed while it was read


async def page(server: ImServer, session: Session, request: pb.Conversations) -> pb.Response:
    """Partition by partition, in name order. What is new meanwhile may be left out."""
    uid = session.uid
    number, after = begin(server, request.page, valid_conversation)
    limit = max(1, min(request.limit or _LIMIT, _LIMIT))
    response = pb.Response()
    answer = response.conversations_ok
    room = reads.PAGE_BYTES_MAX
    while number < len(server.partitions):
        partition = server.partitions[number]
        wanted = limit - len(answer.conversations)
        if not wanted:
            answer.next_page = _PAGE.pack(number)
            return response
        found = await changed_of(partition, uid, 0, after, wanted)
        for name, by_membership in found:
            summary = await _summary(server, partition, uid, name, by_membership)
            if summary is not None:
                room -= summary.ByteSize()
                if room < 0 and answer.conversations:  # every page makes progress
                    answer.next_page = _PAGE.pack(number) + after.encode()
                    return response
                answer.conversations.append(summary)
            after = name
        if len(found) == wanted:
            answer.next_page = _PAGE.pack(number) + after.encode()
            return response
        number, after = number + 1, ""
        await asyncio.sleep(0)  # a KV need not suspend, and there may be many partitions
    return response


def begin(server: ImServer, token: bytes, valid: Callable[[str], bool]) -> tuple[int, str]:
    """Partition, and the (valid) name to go on after. Raises Refused."""
    if not token:
        return 0, ""
    try:
        [number], after = _PAGE.unpack_from(token), token[_PAGE.size :].decode()
    except (struct.error, UnicodeDecodeError):
        number, after = len(server.partitions), ""
    if number >= len(server.partitions) or (after and not valid(after)):
        raise Refused(Code.BAD_REQUEST, "the page is not one that this server gave out")
    return number, after


async def _summary(
    server: ImServer, partition: Partition, uid: str, name: str, by_membership: bool
) -> pb.ConversationSummary | None:
    """None: the user is not in it (any more), or it is in the timeline, which names it too."""
    for _ in range(_READ_AGAIN):
        conversation = await partition.conversations.load(name)
        small = len(conversation.members()) <= server.policy.push_group_members_max
        if (by_membership and small) or not conversation.is_member(uid):
            return None
        begun = partition.applier.begun
        summary = await _read(server.kv, partition.number, conversation, uid)
        if summary is not None and begun == partition.applier.begun:
            return summary
    raise Unavailable("the conversation changes faster than it can be read; ask again")


async def _read(
    kv: Kv, partition: int, conversation: Conversation, uid: str
) -> pb.ConversationSummary | None:
    """None: what one read has found was not so any more for the next one."""
    name = conversation.id
    cursor, settings = await kv.get_many(
        [keys.cursor(partition, uid, name), keys.settings(partition, uid, name)]
    )
    row = oplog.SettingsRow.FromString(settings or b"")
    summary = pb.ConversationSummary(
        conversation=name, name=conversation.name, pinned=row.pinned.on, muted=row.muted.on,
        encrypted=conversation.encrypted,
    )  # fmt: skip
    prefix = keys.order_prefix(partition, name)
    end = keys.prefix_end(prefix)
    last = await kv.scan(prefix, end, 1, reverse=True)
    if not last:
        return summary
    above = _read_up_to(conversation, uid, cursor)
    start = prefix if above is None else keys.order_above(partition, name, above)
    rows = [key for key, _ in await kv.scan(start, end, LOOKED_AT + 1, reverse=True)]
    summary.more_unread = len(rows) > LOOKED_AT
    named = [keys.named_in(key, name) for key in rows[:LOOKED_AT]]
    others = [keys.client_key(partition, key) for key in named if key.uid != uid]
    newest, identity = keys.named_in(last[0][0], name), keys.identity_from(last[0][1])
    stored = await kv.get_many(
        [keys.entry(partition, name, *identity), keys.client_key(partition, newest), *others]
    )
    if stored[0] is None or stored[1] is None:
        return None
    classes = [oplog.ClassRow.FromString(value or b"") for value in stored[1:]]
    summary.unread = sum(not each.changes.recalled for each in classes[1:])
    op = oplog.Op.FromString(stored[0])
    told, said = summary.last, classes[0].changes
    told.key.CopyFrom(op.message.key)
    told.place.CopyFrom(classes[0].place)
    told.composed_ms, told.recalled = op.message.composed_ms, said.recalled
    if not said.recalled:
        latest = said.edit if said.HasField("edit") else op.message
        told.content, told.encrypted = latest.content, latest.encrypted
    return summary


def _read_up_to(conversation: Conversation, uid: str, cursor: bytes | None) -> Place | None:
    """None: nothing. What a group said before the user came is not unread."""
    places = [] if cursor is None else [place_of(pb.Place.FromString(cursor))]
    if (joined := conversation.joined(uid)) is not None:
        places.append(joined)
    return max(places, default=None)


async def set_one(server: ImServer, session: Session, request: pb.SetConversation) -> pb.Response:
    """Pin or mute, for all devices of the user. Answered like a change of a message."""
    partition, conversation = await server.readable(session, request.conversation)
    composed, what = server.keys.seen(stamp_of(request.composed)), request.WhichOneof("what")
    if not composed or what is None:
        message = "a setting says what it sets, and a stamp that its device had seen"
        raise Refused(Code.BAD_REQUEST, message)
    word = oplog.SettingOp(uid=session.uid, **{what: getattr(request, what)})
    word.order.hlc, word.order.device = composed, session.device
    word.order.number = request.number
    stored = await server.kv.get(keys.settings(partition.number, session.uid, conversation.id))
    row = oplog.SettingsRow.FromString(stored or b"")
    if changes.set_last(row, word):
        seen = max(session.seen_hlc, composed)
        op = partition.sequencer.plain(conversation.id, server.clock.wall_ms(), seen)
        op.setting.CopyFrom(word)
        lsn = (await partition.append(op)).lsn
    else:  # so already; what made it so may still be held here only
        lsn = partition.applier.lsn(server.origin)
    await groups.settled(server, session, partition, lsn)
    return pb.Response(ok=pb.Ok())
