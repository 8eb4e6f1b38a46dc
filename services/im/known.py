"""Which cids of a connecting client's outboxes are known here: what ConnectOk lists.

A help, not a promise: whatever is not listed is offered by the client, and answered as known then.
So the work that one Connect may cause is bounded, and what lies beyond the bound is left out. A KV
need not suspend, so the loop is let go between pages: leases and heartbeats of everybody else hang
on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Lane, valid_conversation, valid_id
from services.im import keys
from services.im.partition import Partition
from services.ports import Kv, Session

HEADS_MAX = 1_000
ROWS_MAX = 10_000  # of one Connect
_PAGE = 256
_SCAN_COST = 16  # of a scan, in rows: what it costs even when it finds nothing
_TURN = 512  # rows, or their worth, between two turns of the loop


async def of_outboxes(
    kv: Kv,
    partition_of: Callable[[str], Partition],
    session: Session,
    outbox: Iterable[pb.OutboxHead],
) -> list[pb.KnownCids]:
    found: list[pb.KnownCids] = []
    room, worked = ROWS_MAX, 0
    for lane, (floor, top) in _lanes(session, outbox).items():
        number = partition_of(lane.conversation).number
        prefix = keys.lane(number, lane)
        start, end = prefix + keys.number(floor), prefix + keys.number(top) + b"\0"
        cids: list[int] = []
        while room > 0:
            limit = min(_PAGE, room)
            rows = await kv.scan(start, end, limit)
            # A class that only a claim has made has no copy yet: its message is still to come.
            cids += [
                keys.cid_of(key) for key, value in rows if oplog.ClassRow.FromString(value).copies
            ]
            room -= len(rows)
            worked += len(rows) + _SCAN_COST
            if worked >= _TURN:
                worked = 0
                await asyncio.sleep(0)
            if len(rows) < limit:
                break
            start = rows[-1][0] + b"\0"
        if cids:
            found.append(pb.KnownCids(conversation=lane.conversation, ranges=ranges(cids)))
    return found


def _lanes(session: Session, outbox: Iterable[pb.OutboxHead]) -> Mapping[Lane, tuple[int, int]]:
    """Each lane once, with the cids that are asked for. Heads of no valid form are left out: their
    messages are refused one by one."""
    lanes: dict[Lane, tuple[int, int]] = {}
    for number, head in enumerate(outbox):
        if number == HEADS_MAX:
            break
        if not valid_id(head.outbox) or not valid_conversation(head.conversation):
            continue
        lane = Lane(session.uid, session.device, head.outbox, head.conversation)
        top = head.top or (1 << 64) - 1
        floor, known_top = lanes.get(lane, (head.floor, top))
        lanes[lane] = min(floor, head.floor), max(known_top, top)
    return lanes


def ranges(cids: Iterable[int]) -> list[pb.CidRange]:
    """Of cids in ascending order."""
    found: list[pb.CidRange] = []
    for cid in cids:
        if found and found[-1].last == cid - 1:
            found[-1].last = cid
        else:
            found.append(pb.CidRange(first=cid, last=cid))
    return found
