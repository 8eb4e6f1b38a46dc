"""Groups: create, join, leave, look. The origin alone judges; folds never judge again (rule 15).

A group's id is chosen by its creator (random, so creating again is harmless) and is its
invitation: who knows it may join; a member may add others; everybody leaves for themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imcore.errors import Code, Refused
from imcore.proto import client_pb2 as pb
from imcore.words import is_group, valid_id
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer


async def _group(server: ImServer, name: str) -> tuple[Partition, Conversation]:
    if not is_group(name) or not valid_id(name[2:]):
        raise Refused(Code.BAD_REQUEST, "a group id is 'g:' and 1 to 64 characters")
    partition = server.partition(name)
    return partition, await partition.conversations.load(name)


async def _change(
    server: ImServer,
    session: Session,
    partition: Partition,
    conversation: Conversation,
    changes: list[tuple[str, bool]],
    create: bool = False,
    name: str = "",
) -> pb.Response:
    """Accepted once durable and folded here, so that the caller may send at once."""
    head = conversation.heads.get(server.origin, 0)
    op = partition.sequencer.membership(
        conversation.id,
        changes,
        session.uid,
        head,
        server.clock.wall_ms(),
        session.seen_hlc,
        create=create,
        name=name,
    )
    record = await partition.append(op)
    while partition.applier.applied().get(server.origin, 0) < record.lsn:
        server.applied_changed.clear()
        await server.applied_changed.wait()
    return pb.Response(ok=pb.Ok(seq=op.seq))


async def create(server: ImServer, session: Session, request: pb.GroupCreate) -> pb.Response:
    partition, conversation = await _group(server, request.conversation)
    if conversation.exists:
        if conversation.is_member(session.uid):
            return pb.Response(ok=pb.Ok())
        raise Refused(Code.FORBIDDEN, f"the group {request.conversation} exists already")
    members = {session.uid, *request.members}
    _check_members(server, members, len(members))
    if len(request.name) > 128:
        raise Refused(Code.BAD_REQUEST, "a group's name has at most 128 characters")
    changes = [(uid, True) for uid in sorted(members)]
    return await _change(
        server, session, partition, conversation, changes, create=True, name=request.name
    )


async def change(server: ImServer, session: Session, request: pb.GroupChange) -> pb.Response:
    partition, conversation = await _group(server, request.conversation)
    if not conversation.exists:
        raise Refused(Code.NOT_FOUND, f"there is no group {request.conversation} here (yet)")
    joining, leaving = set(request.join), set(request.leave)
    member = conversation.is_member(session.uid)
    if joining - {session.uid} and not member:
        raise Refused(Code.FORBIDDEN, "only a member may add others")
    if leaving - {session.uid}:
        raise Refused(Code.FORBIDDEN, "everybody leaves for themselves")
    current = set(conversation.members())
    _check_members(server, joining, len((current | joining) - leaving))
    changes = [(uid, True) for uid in sorted(joining - current)]
    changes += [(uid, False) for uid in sorted(leaving & current)]
    if not changes:
        return pb.Response(ok=pb.Ok())
    return await _change(server, session, partition, conversation, changes)


async def info(server: ImServer, session: Session, request: pb.GroupInfo) -> pb.Response:
    _, conversation = await server.readable(session, request.conversation)
    answer = pb.GroupInfoOk(conversation=conversation.id, name=conversation.name)
    answer.members.extend(conversation.members())
    return pb.Response(group_info_ok=answer)


def _check_members(server: ImServer, named: set[str], count: int) -> None:
    if bad := [uid for uid in named if not valid_id(uid)]:
        raise Refused(Code.BAD_REQUEST, f"not a valid uid: {bad[0]!r}")
    if count > server.policy.group_members_max:
        limit = server.policy.group_members_max
        raise Refused(Code.BAD_REQUEST, f"a group has at most {limit} members")
