"""Edits, recalls and reactions: the origin judges who may; folds never judge again (rule 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imcore import changes
from imcore.convert import attested_of, key_of, stamp_of
from imcore.errors import Code, Refused
from imcore.levels import ENCRYPTION
from imcore.limits import CID_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import valid_id
from services.im import device_keys, friends, groups, keys
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

REACTION_CHARS_MAX = 32
REACTIONS_MAX = 1_000  # of one message, those taken back too: they stand in one row


async def change(server: ImServer, session: Session, request: pb.Change) -> pb.Response:
    """Answered like a change of a group: it has no outbox that would bring it back either."""
    what, key = request.WhichOneof("what"), key_of(request.message.key)
    partition, conversation = await server.readable(session, key.conversation)
    if what != "recall" and (blocked := friends.refusal(conversation, session.uid)) is not None:
        raise blocked
    if request.encrypted:
        server.need_level(ENCRYPTION)
    refused = device_keys.refusal(conversation, request.encrypted)
    if what == "edit" and refused is not None:
        raise refused
    names = (key.uid, key.device, key.outbox)
    if not all(map(valid_id, names)) or not 1 <= key.cid <= CID_MAX or what is None:
        raise Refused(Code.BAD_REQUEST, "a change names a message, and what is to change")
    composed = server.keys.seen(stamp_of(request.composed))
    if not composed:  # the time it comes at is no way out: asked for again, it would be another
        raise Refused(Code.BAD_REQUEST, "a change names a stamp that its device had seen")
    moderates = session.service and what == "recall"
    if what != "react" and key.uid != session.uid and not moderates:
        raise Refused(Code.FORBIDDEN, "only its sender may edit or recall a message")
    if len(request.edit) > server.policy.content_bytes_max:
        limit = server.policy.content_bytes_max
        raise Refused(Code.TOO_LARGE, f"a message holds at most {limit} bytes")
    if what == "react" and not 1 <= len(request.react.code) <= REACTION_CHARS_MAX:
        message = f"a reaction has 1 to {REACTION_CHARS_MAX} characters"
        raise Refused(Code.BAD_REQUEST, message)
    stored = await server.kv.get(keys.client_key(partition.number, key))
    row = oplog.ClassRow.FromString(stored or b"")
    if not row.copies and not server.keys.verify(attested_of(request.message)):
        raise Refused(Code.NOT_FOUND, "there is no such message here (yet)")
    entry = pb.ChangeEntry(key=request.message.key, actor=session.uid)
    entry.order.hlc, entry.order.device = composed, session.device
    entry.order.number = request.number
    if what == "edit":
        entry.edit, entry.encrypted = request.edit, request.encrypted
    elif what == "recall":
        entry.recall.SetInParent()
    else:
        entry.react.CopyFrom(request.react)
    before = len(row.changes.reactions)
    if not changes.merge(row.changes, entry):
        # So already, perhaps by a request whose answer did not come, or a later one counts: what
        # made it so may still be held here only.
        lsn = partition.applier.lsn(server.origin)
        await groups.settled(server, session, partition, lsn)
        return pb.Response(ok=pb.Ok())
    # One that was given in another IDC, and has not come here yet, can be taken back as well.
    room = REACTIONS_MAX if request.react.on else 2 * REACTIONS_MAX
    if before >= room and len(row.changes.reactions) > before:
        raise Refused(Code.TOO_LARGE, f"a message has at most {REACTIONS_MAX} reactions")
    # Only now: a head of before a rebuild could give a seq out twice.
    conversation = await partition.conversations.load(key.conversation)
    head = conversation.heads.get(server.origin, 0)
    seen = max(session.seen_hlc, composed)
    op = partition.sequencer.change(entry, head, server.clock.wall_ms(), seen)
    record = await partition.append(op)
    await groups.settled(server, session, partition, record.lsn)
    return pb.Response(ok=pb.Ok(seq=op.seq))
