"""Finds in the KV what was folded of one origin, when its log copy no longer tells (rule 7)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from imcore.convert import vector_of
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin
from services.im import keys
from services.ports import Kv

_PAGE = 200


async def applied_above(
    kv: Kv, partition: int, origin: Origin, hlc: int
) -> AsyncIterator[list[oplog.Op]]:
    """The origin's entries above this HLC, by conversation, each conversation's in order. Within an
    origin HLC rises with seq, so only what is wanted is read, from each conversation's end."""
    start = keys.table(partition, b"h")
    end = keys.prefix_end(start)
    while True:
        page = await kv.scan(start, end, _PAGE)
        for key, row in page:
            heads = vector_of(oplog.HeadsRow.FromString(row).heads)
            if origin in heads:
                name = keys.conversation_of(key)
                ops = await _tail(kv, partition, name, origin, heads[origin], hlc)
                if ops:
                    yield ops
        if len(page) < _PAGE:
            return
        start = page[-1][0] + b"\0"


async def _tail(
    kv: Kv, partition: int, name: str, origin: Origin, head: int, hlc: int
) -> list[oplog.Op]:
    ops: list[oplog.Op] = []
    low, high = keys.entry(partition, name, origin, 0), head + 1
    while True:
        page = await kv.scan(low, keys.entry(partition, name, origin, high), _PAGE, reverse=True)
        for _, row in page:
            op = oplog.Op.FromString(row)
            if op.hlc <= hlc:
                return ops[::-1]
            ops.append(op)
        if len(page) < _PAGE:
            return ops[::-1]
        high = ops[-1].seq
