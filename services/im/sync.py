"""Which conversations of a user have changed: the catch-up after a connect, page by page."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from imcore.errors import Code, Refused
from imcore.proto import client_pb2 as pb
from imcore.words import valid_conversation
from services.im import reads
from services.im.partition import Partition
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

_PAGE = struct.Struct(">H")


def _since(server: ImServer, token: bytes) -> list[int]:
    """Timeline numbers per partition; zeros (everything) for a token of another log's life, since
    timelines are local to an IDC."""
    count = len(server.partitions)
    numbers = struct.Struct(f">{count}Q")
    if len(token) == 16 + numbers.size and token[:16] == server.log_id:
        return list(numbers.unpack(token[16:]))
    return [0] * count


def token_of(server: ImServer) -> bytes:
    """A later sync since then tells all that was told (pushed) after now."""
    timelines = [partition.applier.timeline for partition in server.partitions]
    return server.log_id + struct.pack(f">{len(timelines)}Q", *timelines)


def _page(server: ImServer, page: bytes) -> tuple[int, str, bytes]:
    """Partition, name to go on after, and the token that the first page has fixed."""
    if not page:
        return 0, "", token_of(server)
    size = 16 + 8 * len(server.partitions)
    token = page[_PAGE.size : _PAGE.size + size]
    try:
        after = page[_PAGE.size + size :].decode()
    except UnicodeDecodeError:
        token = b""
    if len(token) != size or (after and not valid_conversation(after)):
        raise Refused(Code.BAD_REQUEST, "the page is not one that this server gave out")
    return _PAGE.unpack_from(page)[0], after, token


async def changed_of(
    partition: Partition, uid: str, since: int, after: str, limit: int
) -> list[tuple[str, bool]]:
    """While a partition is folded again, what has changed cannot be seen: it is waited for."""
    while True:
        await partition.conversations.whole()
        begun = partition.applier.begun
        changed = await reads.changed_conversations(
            partition.kv, partition.number, uid, since, after, limit
        )
        if begun == partition.applier.begun:
            return changed


async def sync_page(server: ImServer, session: Session, sync: pb.Sync) -> pb.Response:
    since = _since(server, sync.since)
    number, after, token = _page(server, sync.page)
    limit = max(1, min(sync.limit or reads.SYNC_LIMIT, reads.SYNC_LIMIT))
    response = pb.Response()
    answer = response.sync_ok
    answer.token = token
    while number < len(server.partitions):
        partition = server.partitions[number]
        room = limit - len(answer.conversations)
        changed = await changed_of(partition, session.uid, since[number], after, room)
        for name, by_membership in changed:
            conversation = await partition.conversations.load(name)
            small = len(conversation.members()) <= server.policy.push_group_members_max
            if (by_membership and small) or not conversation.is_member(session.uid):
                continue
            answer.conversations.append(reads.heads(conversation, server.stable(partition)))
        if len(changed) == room:
            answer.next_page = _PAGE.pack(number) + token + changed[-1][0].encode()
            return response
        number, after = number + 1, ""
    return response
