"""Groups: create, join, leave, look. The origin alone judges; folds never judge again (rule 15).

A group's id is chosen by its creator (random, so creating again is harmless) and is its
invitation: who knows it may join; a member may add others; everybody leaves for themselves.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import TYPE_CHECKING

from imcore.errors import Code, Refused, Unavailable
from imcore.limits import GROUP_CHANGES_MAX, GROUP_PAGE
from imcore.proto import client_pb2 as pb
from imcore.words import is_group, valid_id
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

_NOT_DURABLE = (1 << 63) - 1  # a lsn that nobody holds


async def _group(server: ImServer, name: str) -> tuple[Partition, Conversation]:
    if not is_group(name):
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
    """Answered once it is durable, folded here, so that the caller may send at once, and held by
    another IDC: a membership has no outbox that would bring it back, and with it the loss of this
    IDC would take the right to send what the members' outboxes bring."""
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
    joined = [(conversation.id, uid) for uid, member in changes if member]
    server.granted.update(dict.fromkeys(joined, _NOT_DURABLE))  # before the fold makes it count
    try:
        record = await partition.append(op)
    except BaseException:
        for grant in joined:
            server.granted.pop(grant, None)
        raise
    server.granted.update(dict.fromkeys(joined, record.lsn))
    await settled(server, session, partition, record.lsn)
    for grant in joined:
        if server.granted.get(grant) == record.lsn:
            del server.granted[grant]
    return pb.Response(ok=pb.Ok(seq=op.seq))


async def settled(server: ImServer, session: Session, partition: Partition, lsn: int) -> None:
    """Raises Unavailable when no other IDC holds it in time: it stands here, and asking again is
    harmless."""
    server.pushes.accepted(session, server.origin, partition.number, lsn)
    deadline = server.clock.now() + server.policy.replicated_timeout_ms / 1000
    folded = await server.folded(partition, server.origin, lsn, deadline)
    if not folded or not await server.held_elsewhere(partition, lsn, deadline):
        raise Unavailable("no other IDC holds the change yet; ask again", 500)


async def _as_before(
    server: ImServer,
    session: Session,
    partition: Partition,
    conversation: Conversation,
    uids: Iterable[str],
) -> pb.Response:
    """What was asked for is so already, perhaps by a request whose answer did not come: then that
    one's op may still be held here only."""
    last = [events[-1] for uid in uids if (events := conversation.events.get(uid))]
    if any(origin == server.origin for _, origin, _, _ in last):
        lsn = partition.applier.applied().get(server.origin, 0)
        await settled(server, session, partition, lsn)
    return pb.Response(ok=pb.Ok())


async def create(server: ImServer, session: Session, request: pb.GroupCreate) -> pb.Response:
    partition, conversation = await _group(server, request.conversation)
    if conversation.exists:
        if conversation.is_member(session.uid):
            uids = (session.uid, *request.members)
            return await _as_before(server, session, partition, conversation, uids)
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
    new = sorted(uid for uid in joining if not conversation.is_member(uid))
    gone = sorted(uid for uid in leaving if conversation.is_member(uid))
    _check_members(server, joining | leaving, len(conversation.members()) + len(new) - len(gone))
    changes = [(uid, True) for uid in new] + [(uid, False) for uid in gone]
    if not changes:
        return await _as_before(server, session, partition, conversation, joining | leaving)
    return await _change(server, session, partition, conversation, changes)


async def info(server: ImServer, session: Session, request: pb.GroupInfo) -> pb.Response:
    _, conversation = await server.readable(session, request.conversation)
    members = conversation.members()
    begin = bisect.bisect_right(members, request.after) if request.after else 0
    page = members[begin : begin + GROUP_PAGE]
    answer = pb.GroupInfoOk(conversation=conversation.id, name=conversation.name)
    answer.members.extend(page)
    answer.more, answer.count = begin + len(page) < len(members), len(members)
    return pb.Response(group_info_ok=answer)


def _check_members(server: ImServer, named: set[str], count: int) -> None:
    """``named``: those of one request, which becomes one entry that every member reads. Raises
    Refused."""
    if len(named) > GROUP_CHANGES_MAX:
        message = f"one request changes at most {GROUP_CHANGES_MAX} members; ask in several"
        raise Refused(Code.BAD_REQUEST, message)
    if bad := [uid for uid in named if not valid_id(uid)]:
        raise Refused(Code.BAD_REQUEST, f"not a valid uid: {bad[0]!r}")
    if count > server.policy.group_members_max:
        limit = server.policy.group_members_max
        raise Refused(Code.BAD_REQUEST, f"a group has at most {limit} members")
