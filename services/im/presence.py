"""What is told and never logged: who types, and who is online."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from imcore.errors import Code, Refused
from imcore.limits import TYPING_MEMBERS_MAX, WATCHED_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import direct_conversation, valid_id
from services.im import friends, keys, pair
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

TYPING_LIVES_MS = 6_000  # twice the time after which an SDK says it again
TYPING_PER_S = 0.5  # of one user in one conversation
TYPING_BURST = 2.0


async def typing(server: ImServer, session: Session, request: pb.Typing) -> pb.Response:
    """Tells the other members. What is too much, of a conversation that is too large or of one who
    is blocked, is answered like the rest: nobody must try again. Raises Refused."""
    _, conversation = await server.readable(session, request.conversation)
    members = conversation.members()
    blocked = friends.refusal(conversation, session.uid) is not None
    if len(members) <= TYPING_MEMBERS_MAX and not blocked:
        who = f"{session.uid} {conversation.id}"
        if not server.typing_rate.take(who, server.clock.now()):
            others = [uid for uid in members if uid != session.uid]
            said = pb.Typing(
                conversation=conversation.id, uid=session.uid, lives_ms=TYPING_LIVES_MS
            )
            server.live.typing(others, said)
    return pb.Response(ok=pb.Ok())


async def watch(server: ImServer, session: Session, request: pb.Watch) -> pb.Response:
    """Who has blocked the asker is shown as one who was never here. Raises Refused, Overloaded."""
    uids = list(dict.fromkeys(request.uids))
    if len(uids) > WATCHED_MAX or not all(map(valid_id, uids)):
        message = f"a device watches at most {WATCHED_MAX} users, by uid"
        raise Refused(Code.BAD_REQUEST, message)
    blocking = await _blocking(server, session.uid, uids)
    shown = server.live.watch(session, [uid for uid in uids if uid not in blocking])
    hidden = [pb.Presence(uid=uid) for uid in uids if uid in blocking]
    return pb.Response(watch_ok=pb.WatchOk(users=[*shown, *hidden]))


async def _blocking(server: ImServer, uid: str, others: Iterable[str]) -> set[str]:
    """Those of them who block this user."""
    asked = []
    for other in others:
        name = direct_conversation(uid, other)
        if (both := pair.pair_of(name)) is not None:
            asked.append((other, both, keys.friend(server.partition(name).number, *both)))
    rows = await server.kv.get_many([key for _, _, key in asked])
    return {
        other
        for (other, both, _), row in zip(asked, rows, strict=True)
        if row is not None and pair.blocks(oplog.FriendRow.FromString(row), both, other)
    }
