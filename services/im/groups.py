"""Groups: create, join, leave, look. The origin alone judges; folds never judge again (rule 15).

A group's id is chosen by its creator (random, so creating again is harmless) and is its
invitation: who knows it may join, but for whom another has removed; a member may add others, who
counts as owner or admin may more (``_judge``). Between IDCs a word on a role takes as long as any
op: what an admin does elsewhere before his demotion has come there counts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from imcore.convert import place_of
from imcore.errors import Code, Refused, Unavailable
from imcore.levels import ENCRYPTION
from imcore.limits import (
    ENCRYPTED_MEMBERS_MAX,
    GROUP_ADMINS_MAX,
    GROUP_CHANGES_MAX,
    GROUP_PAGE,
)
from imcore.proto import client_pb2 as pb
from imcore.words import Place, is_group, valid_id
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.im.roles import MEMBER
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

NAME_CHARS_MAX = 128
ANNOUNCEMENT_BYTES_MAX = 4_096
_ABOVE = pb.GROUP_ROLE_OWNER + 1  # what a service may, which removes an owner too
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
    roles: Sequence[pb.RoleChange] = (),
    announcement: pb.Announcement | None = None,
    encrypted: bool = False,
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
        roles=roles,
        announcement=announcement,
        encrypted=encrypted,
    )
    joined = [uid for uid, member in changes if member]
    grants = server.granted.setdefault(conversation.id, {})
    grants.update(dict.fromkeys(joined, _NOT_DURABLE))  # before the fold makes it count
    try:
        record = await partition.append(op)
    except BaseException:
        for uid in joined:
            grants.pop(uid, None)
        raise
    grants.update(dict.fromkeys(joined, record.lsn))
    await settled(server, session, partition, record.lsn)
    return pb.Response(ok=pb.Ok(seq=op.seq))


def forget_held(server: ImServer) -> None:
    """Memberships that count by now and that another IDC holds; who asked for them may be gone long
    since."""
    for name, grants in list(server.granted.items()):
        partition = server.partition(name)
        folded = partition.applier.lsn(server.origin)
        done = [u for u, lsn in grants.items() if lsn <= folded and server.safe(partition, lsn)]
        for uid in done:
            del grants[uid]
        if not grants:
            del server.granted[name]


def _coming(server: ImServer, partition: Partition, name: str) -> set[str]:
    """Who has been let in and is not folded yet."""
    folded = partition.applier.lsn(server.origin)
    return {uid for uid, lsn in server.granted.get(name, {}).items() if lsn > folded}


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
    said: Iterable[Place] = (),
) -> pb.Response:
    """What was asked for is so already, perhaps by a request whose answer did not come: then that
    one's op may still be held here only. ``said``: the places of what made it so."""
    last = [events[-1] for uid in uids if (events := conversation.events.get(uid))]
    origins = {event[1] for event in last} | {place.origin for place in said}
    if server.origin in origins:
        lsn = partition.applier.lsn(server.origin)
        await settled(server, session, partition, lsn)
    return pb.Response(ok=pb.Ok())


async def create(server: ImServer, session: Session, request: pb.GroupCreate) -> pb.Response:
    partition, conversation = await _group(server, request.conversation)
    if conversation.exists:
        if conversation.is_member(session.uid):
            uids = (session.uid, *request.members)
            return await _as_before(server, session, partition, conversation, uids)
        raise Refused(Code.FORBIDDEN, f"the group {request.conversation} exists already")
    if request.encrypted:
        server.need_level(ENCRYPTION)
    members = {session.uid, *request.members}
    count = len(members | _coming(server, partition, request.conversation))
    _check_members(server, members, count, request.encrypted)
    _check_name(request.name)
    changes = [(uid, True) for uid in sorted(members)]
    owner = pb.RoleChange(uid=session.uid, role=pb.GROUP_ROLE_OWNER)
    return await _change(
        server, session, partition, conversation, changes, True, request.name, [owner],
        encrypted=request.encrypted,
    )  # fmt: skip


async def change(server: ImServer, session: Session, request: pb.GroupChange) -> pb.Response:
    partition, conversation = await _group(server, request.conversation)
    if not conversation.exists:
        raise Refused(Code.NOT_FOUND, f"there is no group {request.conversation} here (yet)")
    joining, leaving = set(request.join), set(request.leave)
    roles = {word.uid: word for word in request.roles}
    _judge(conversation, session, joining, leaving, roles, request)
    new = sorted(uid for uid in joining if not conversation.is_member(uid))
    gone = sorted(uid for uid in leaving if conversation.is_member(uid))
    named = {*joining, *leaving, *roles}
    coming = _coming(server, partition, request.conversation).union(new)
    count = len(conversation.members()) - len(gone)
    count += sum(not conversation.is_member(uid) for uid in coming)
    _check_members(server, named, count, conversation.encrypted and bool(new))
    _check_name(request.name)
    if len(request.announcement.text.encode()) > ANNOUNCEMENT_BYTES_MAX:
        limit = ANNOUNCEMENT_BYTES_MAX
        raise Refused(Code.TOO_LARGE, f"an announcement has at most {limit} bytes")
    changes = [(uid, True) for uid in new] + [(uid, False) for uid in gone]
    words = [word for uid, word in sorted(roles.items()) if conversation.role(uid) != word.role]
    name = request.name if request.name != conversation.name else ""
    told = conversation.announced
    announcement = request.announcement if request.HasField("announcement") else None
    if announcement is not None and (told.text, told.actor) == (announcement.text, session.uid):
        announcement = None
    if changes or words or name or announcement is not None:
        return await _change(
            server, session, partition, conversation, changes, name=name, roles=words,
            announcement=announcement,
        )  # fmt: skip
    said = [conversation.role_words[uid][0] for uid in roles if uid in conversation.role_words]
    said += [conversation.name_at] if request.name else []
    said += [place_of(told.at)] if request.HasField("announcement") else []
    uids = joining | leaving
    return await _as_before(server, session, partition, conversation, uids, said)


def _judge(
    conversation: Conversation,
    session: Session,
    joining: set[str],
    leaving: set[str],
    roles: Mapping[str, pb.RoleChange],
    request: pb.GroupChange,
) -> None:
    """Who may: a member adds others; an admin removes members, names the group and announces; the
    owner removes anybody else and gives roles. Everybody leaves, and an admin resigns, for
    themselves. A service may all of it. Raises Refused."""
    uid, name, announces = session.uid, request.name, request.HasField("announcement")
    own: int = pb.GROUP_ROLE_NONE
    if session.service:
        own = _ABOVE
    elif conversation.is_member(uid):
        # Of a large group that nobody has named an owner or admin of, it is looked for long.
        own = conversation.role(uid) if name or announces or roles or leaving - {uid} else MEMBER
    if joining - {uid} and not own:
        raise Refused(Code.FORBIDDEN, "only a member can add others")
    if uid in joining and conversation.removed(uid):
        raise Refused(
            Code.FORBIDDEN, "you were removed from this group; only a member can add you back"
        )
    for other in sorted(leaving - {uid}):
        # One who is none (any more) has no role that protects him: asked for again, it is so.
        if own <= MEMBER or (conversation.is_member(other) and conversation.role(other) >= own):
            raise Refused(
                Code.FORBIDDEN,
                "only an admin can remove members, and only the owner can remove admins",
            )
    if name and own <= MEMBER and not (own and name == conversation.name):
        raise Refused(Code.FORBIDDEN, "only the owner and admins can rename a group")
    if announces and own <= MEMBER:
        raise Refused(Code.FORBIDDEN, "only the owner and admins can announce to a group")
    for other, word in roles.items():
        if word.role not in (MEMBER, pb.GROUP_ROLE_ADMIN, pb.GROUP_ROLE_OWNER):
            raise Refused(Code.BAD_REQUEST, "expected the role of member, admin or owner")
        if not conversation.is_member(other):
            raise Refused(Code.NOT_FOUND, f"{other!r} is not a member here (yet)")
        if own and conversation.role(other) == word.role:
            continue  # so already: the owner who handed the group over may ask again
        resigns = other == uid and word.role <= own < pb.GROUP_ROLE_OWNER
        if own < pb.GROUP_ROLE_OWNER and not resigns:
            raise Refused(Code.FORBIDDEN, "only the owner can change roles")
        if own == pb.GROUP_ROLE_OWNER and other == uid:
            raise Refused(
                Code.BAD_REQUEST, "an owner cannot step down: transfer ownership or leave"
            )
    more = [other for other, word in roles.items() if word.role != MEMBER]
    if more and len({*conversation.roles().admins, *more}) > GROUP_ADMINS_MAX:
        raise Refused(Code.TOO_LARGE, f"a group has at most {GROUP_ADMINS_MAX} admins")


async def info(server: ImServer, session: Session, request: pb.GroupInfo) -> pb.Response:
    _, conversation = await server.readable(session, request.conversation)
    members = conversation.members()
    begin = bisect.bisect_right(members, request.after) if request.after else 0
    page = members[begin : begin + GROUP_PAGE]
    answer = pb.GroupInfoOk(conversation=conversation.id, name=conversation.name)
    answer.members.extend(page)
    answer.more, answer.count = begin + len(page) < len(members), len(members)
    if conversation.announced.text:
        told = conversation.announced
        answer.announcement.text, answer.announced_by = told.text, told.actor
        answer.announced_ms = told.at.hlc >> 16
    answer.encrypted = conversation.encrypted
    answer.owner, admins = conversation.roles()
    answer.admins.extend(sorted(admins))
    return pb.Response(group_info_ok=answer)


def _check_name(name: str) -> None:
    if len(name) > NAME_CHARS_MAX:
        limit = NAME_CHARS_MAX
        raise Refused(Code.BAD_REQUEST, f"a group's name has at most {limit} characters")


def _check_members(server: ImServer, named: set[str], count: int, encrypted: bool) -> None:
    """``named``: those of one request, which becomes one entry that every member reads. Raises
    Refused."""
    if len(named) > GROUP_CHANGES_MAX:
        message = f"one request changes at most {GROUP_CHANGES_MAX} members; ask in several"
        raise Refused(Code.BAD_REQUEST, message)
    if bad := [uid for uid in named if not valid_id(uid)]:
        raise Refused(Code.BAD_REQUEST, f"not a valid uid: {bad[0]!r}")
    limit = server.policy.group_members_max
    if encrypted:
        limit = min(limit, ENCRYPTED_MEMBERS_MAX)
    if count > limit:
        such = "an encrypted" if encrypted else "a"
        raise Refused(Code.BAD_REQUEST, f"{such} group has at most {limit} members")
