"""What the admin API is asked, as requests of the client protocol, and their answers as documents.
Pure.

A message gets its client key from the Idempotency-Key alone: a lane for each key, with one message
in it. So a request that is repeated, here or in another IDC, is the same message wherever it comes.
"""

from __future__ import annotations

import base64
import hashlib

from imcore.convert import key_of, key_pb
from imcore.errors import Code, ImError, Overloaded, Refused, Unavailable
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey, direct_conversation, is_group, valid_conversation
from services.adminapi import documents as docs

DEVICE = "api"  # of messages by a service
_ROLES = {
    "member": pb.GROUP_ROLE_MEMBER,
    "admin": pb.GROUP_ROLE_ADMIN,
    "owner": pb.GROUP_ROLE_OWNER,
}


def message_key(uid: str, conversation: str, idempotency_key: str) -> ClientKey:
    outbox = hashlib.sha256(idempotency_key.encode()).hexdigest()
    return ClientKey(uid, DEVICE, outbox, conversation, 1)


def send(uid: str, asked: docs.Send, idempotency_key: str, now_ms: int) -> pb.Request:
    """``uid``: who speaks. ``now_ms``: when it was composed, as shown to people."""
    to = asked.to
    key = message_key(uid, to if is_group(to) else direct_conversation(uid, to), idempotency_key)
    if isinstance(asked, docs.SendText):
        content = asked.text.encode()
    else:
        content = base64.b64decode(asked.content_base64, validate=True)
    message = pb.Send(
        conversation=key.conversation, outbox=key.outbox, cid=1, floor=1, content=content,
        composed_ms=now_ms,
    )  # fmt: skip
    if asked.mentions:
        message.refs = pb.Refs(mentions=asked.mentions).SerializeToString()
    return pb.Request(send=message)


def sent(response: pb.Response) -> docs.Sent:
    """Raises Unavailable."""
    ack = response.send_ack
    if ack.outcome == pb.SendAck.WANT:  # a lane of one message wants no other one
        raise Unavailable("the message is being read; ask again")
    key = key_of(ack.placed.key)
    known = ack.outcome == pb.SendAck.KNOWN
    return docs.Sent(
        key=docs.MessageKey(**key._asdict()),
        conversation=key.conversation,
        known=known,
    )


def recall(asked: docs.Recall, stamp: pb.Stamp) -> pb.Request:
    """``stamp``: of now. Raises Refused."""
    key = ClientKey(**asked.key.model_dump())
    if not valid_conversation(key.conversation):
        raise Refused(Code.NOT_FOUND, "there is no such message here (yet)")
    change = pb.Change(recall=pb.Recall(), composed=stamp)
    change.message.key.CopyFrom(key_pb(key))
    return pb.Request(change=change)


def create(conversation: str, asked: docs.CreateGroup) -> pb.Request:
    """To be asked as the owner."""
    made = pb.GroupCreate(conversation=conversation, members=asked.members, name=asked.name)
    return pb.Request(group_create=made)


def change(conversation: str, asked: docs.ChangeGroup) -> pb.Request:
    changed = pb.GroupChange(
        conversation=conversation, join=asked.join, leave=asked.leave, name=asked.name
    )
    for word in asked.roles:
        changed.roles.add(uid=word.uid, role=_ROLES[word.role])
    return pb.Request(group_change=changed)


def look(conversation: str, after: str) -> pb.Request:
    return pb.Request(group_info=pb.GroupInfo(conversation=conversation, after=after))


def group(response: pb.Response) -> docs.Group:
    found = response.group_info_ok
    return docs.Group(
        conversation=found.conversation,
        name=found.name,
        members=list(found.members),
        more=found.more,
        count=found.count,
        owner=found.owner,
        admins=list(found.admins),
    )


def user(uid: str, response: pb.Response) -> docs.User:
    devices = [
        docs.Device(
            device=row.device,
            kind=row.kind,
            online=row.online,
            idc=row.idc,
            since_ms=row.since_ms,
        )
        for row in response.devices_ok.devices
    ]
    return docs.User(uid=uid, online=any(each.online for each in devices), devices=devices)


def error_of(error: pb.Error) -> ImError:
    """What im says of a request that it did not do."""
    if error.code == Code.OVERLOADED:
        return Overloaded(error.message, error.retry_after_ms)
    if error.retry_after_ms:
        return Unavailable(error.message, error.retry_after_ms)
    return Refused(Code(error.code), error.message)
