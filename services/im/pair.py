"""What two users are to each other: friends, asked, blocked. The same fold in every IDC. Pure.

A row keeps the last time that each of them wanted it, and the last time that one of them did not.
They are friends when both have wanted it since; whoever alone has asks. The times are the orders
that devices gave their words (``Order``), so neither the order in which words come matters nor how
often one comes, and a word is not overridden by an earlier one that is asked for again. A block is
a setting of each, and ends a friendship.
"""

from __future__ import annotations

from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import direct_members

_Rank = tuple[int, str, int]


def _rank(order: pb.Order) -> _Rank:
    return order.hlc, order.device, order.number


def pair_of(conversation: str) -> tuple[str, str] | None:
    """The low and the high one; None: this is not the conversation of two."""
    members = direct_members(conversation)
    return members if members is not None and members[0] != members[1] else None


def merge(row: oplog.FriendRow, pair: tuple[str, str], op: oplog.FriendOp) -> bool:
    """Fold one word of one of the pair; whether that changed anything."""
    low = op.actor == pair[0]
    if op.HasField("wants"):
        if not op.wants:
            return _raise(row.ended, op.order)
        return _raise(row.wanted_low if low else row.wanted_high, op.order)
    if op.HasField("encrypted"):
        if row.encrypted or not op.encrypted:
            return False
        row.encrypted = True
        return True
    if not op.HasField("blocks"):
        return False
    # Also when an unblock that came first is the later word.
    ended = op.blocks and _raise(row.ended, op.order)
    block = row.blocked_low if low else row.blocked_high
    if (_rank(block.order), block.on) >= (_rank(op.order), op.blocks):
        return ended
    block.on = op.blocks
    block.order.CopyFrom(op.order)
    return True


def _raise(held: pb.Order, order: pb.Order) -> bool:
    if _rank(held) >= _rank(order):
        return False
    held.CopyFrom(order)
    return True


def blocks(row: oplog.FriendRow, pair: tuple[str, str], uid: str) -> bool:
    """Whether this one of the pair blocks the other."""
    return row.blocked_low.on if uid == pair[0] else row.blocked_high.on


def told(row: oplog.FriendRow, pair: tuple[str, str], uid: str) -> pb.Friend:
    """What the other one is to this one. Who blocks is told nothing else; whom the other blocks
    is not told so."""
    low, high = pair
    other = high if uid == low else low
    own_blocks = blocks(row, pair, uid)
    return pb.Friend(
        uid=other,
        state=pb.Friend.NONE if own_blocks else _state(row, uid == low),
        blocked=own_blocks,
    )


def _state(row: oplog.FriendRow, low: bool) -> pb.Friend.State.ValueType:
    ended = _rank(row.ended)
    own, others = row.wanted_low, row.wanted_high
    if not low:
        own, others = others, own
    wants, wanted = _rank(own) > ended, _rank(others) > ended
    if wants and wanted:
        return pb.Friend.FRIEND
    if wants:
        return pb.Friend.ASKED
    return pb.Friend.ASKING if wanted else pb.Friend.NONE
