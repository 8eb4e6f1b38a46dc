"""Who has read a message: counts and lists when they are asked for, and receipts that are pushed.

No message and no reader costs anything ahead: a read cursor is one op for all that stands below it,
and since it is a place it means the same messages in every IDC. A message is read by whom it stands
at or below the cursor of. It is asked of the other members who were there when it was sent and have
not left since; at most LOOKED_AT of them for one answer.

Whoever is connected is told without asking where the conversation is small: once a turn of
``ImServer.tick``, the last place of each reader. That may be lost; what is asked for is not.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from imcore.convert import key_of, place_of, place_pb
from imcore.errors import Code, Refused, Unavailable
from imcore.limits import CID_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Place, valid_id
from services.im import friends, keys
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

LOOKED_AT = 1_000  # members, for one answer
CHUNK = 100  # cursors that are read in one turn of the loop
TOLD_MEMBERS_MAX = 10  # in a larger conversation nobody is told who has read
TOLD_A_TURN = 500  # readers
_WAITING_MAX = 10_000


class Receipts:
    """Cursors that moved and are not told yet. Of more than so many readers the last are left out:
    an IDC that catches up folds the cursors of hours."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Place] = {}

    def moved(self, uid: str, conversation: str, place: Place) -> None:
        key = (uid, conversation)
        if key in self._waiting or len(self._waiting) < _WAITING_MAX:
            self._waiting[key] = max(place, self._waiting.get(key, place))

    def taken(self) -> list[tuple[str, str, Place]]:
        """What is told in this turn."""
        some = list(self._waiting)[:TOLD_A_TURN]
        return [(uid, name, self._waiting.pop((uid, name))) for uid, name in some]


def tell(server: ImServer) -> None:
    """The others of small conversations. One that is not in memory says nothing now."""
    for uid, name, place in server.receipts.taken():
        conversation = server.partition(name).conversations.get(name)
        if conversation is None or len(conversation.members()) > TOLD_MEMBERS_MAX:
            continue
        members = conversation.members()
        others = [
            other
            for other in members
            if other != uid and friends.refusal(conversation, other) is None
        ]
        if uid in members and others:
            moved = pb.CursorMoved(conversation=name, uid=uid, place=place_pb(place))
            server.pushes.tell(others, pb.Event(cursor_moved=moved))


async def page(server: ImServer, session: Session, request: pb.Readers) -> pb.Response:
    """Raises Refused, Overloaded, Unavailable."""
    key = key_of(request.message)
    partition, conversation = await server.readable(session, key.conversation)
    if (blocked := friends.refusal(conversation, session.uid)) is not None:
        raise blocked
    names = (key.uid, key.device, key.outbox)
    if not all(map(valid_id, names)) or not 1 <= key.cid <= CID_MAX:
        raise Refused(Code.BAD_REQUEST, "who has read is asked of a message")
    cost = min(len(conversation.members()), LOOKED_AT)
    with server.looking.begun(session.uid, cost):
        begun = partition.applier.begun
        answer = await _page(server, partition, conversation, key, request)
        if begun != partition.applier.begun:
            raise Unavailable("the conversation is being folded again; ask again")
    return pb.Response(readers_ok=answer)


async def _page(
    server: ImServer,
    partition: Partition,
    conversation: Conversation,
    key: ClientKey,
    request: pb.Readers,
) -> pb.ReadersOk:
    stored = await server.kv.get(keys.client_key(partition.number, key))
    row = oplog.ClassRow.FromString(stored or b"")
    if not row.copies:
        raise Refused(Code.NOT_FOUND, "there is no such message here (yet)")
    place, answer = place_of(row.place), pb.ReadersOk()
    members = conversation.members()
    first = bisect_right(members, request.page)
    looked_at = members[first : first + LOOKED_AT]
    for at in range(0, len(looked_at), CHUNK):
        asked = [
            uid
            for uid in looked_at[at : at + CHUNK]
            if uid != key.uid and _was_there(conversation, uid, place)
        ]
        wanted = [keys.cursor(partition.number, uid, conversation.id) for uid in asked]
        async with server.looking.turn():
            cursors = await server.kv.get_many(wanted)
            for uid, cursor in zip(asked, cursors, strict=True):
                read = cursor is not None and place_of(pb.Place.FromString(cursor)) >= place
                _count(answer, uid, read, not request.counts_only)
    if first + LOOKED_AT < len(members):
        answer.next_page = looked_at[-1]
    return answer


def _was_there(conversation: Conversation, uid: str, place: Place) -> bool:
    joined = conversation.joined(uid)
    return joined is None or joined < place


def _count(answer: pb.ReadersOk, uid: str, read: bool, named: bool) -> None:
    if read:
        answer.read += 1
    else:
        answer.unread += 1
    if named:
        (answer.read_by if read else answer.unread_by).append(uid)
