"""Scans of one generation of one partition, in both directions.

Down, rows of a table with shadows are one scan of these. Other rows are scanned up and the last
ones are kept: first close below the end, as far as rows would lie whose keys end in consecutive
numbers (entries do), then in wider and wider ranges, and at last from the start. So a scan down of
keys without shadows that end in no number costs as much as reading all of the range.
"""

from __future__ import annotations

from collections import deque

from services.engines.tikv.client import SCAN_ROWS_MAX, Pair, Snapshot
from services.engines.tikv.layout import Layout, after, below, inverted, upright

EMPTY_FREE = b"\0"  # in front of every value: TiKV's clients take an empty one for none
_WIDER = (1, 32, 1_024)


async def scan(
    snapshot: Snapshot,
    layout: Layout,
    place: tuple[int, int],
    bounds: tuple[bytes, bytes | None],
    limit: int,
) -> list[Pair]:
    """``place``: partition and generation; keys are without their partition, here and below."""
    start, end, cut = _range(layout, place, bounds)
    return [(key[cut:], value[1:]) for key, value in await snapshot.scan(start, end, limit)]


async def scan_down(
    snapshot: Snapshot,
    layout: Layout,
    place: tuple[int, int],
    bounds: tuple[bytes, bytes | None],
    limit: int,
    shadowed: frozenset[bytes],
) -> list[Pair]:
    low, high = bounds
    if high is not None and _one_table(low, high) in shadowed:
        prefix = layout.shadows(*place)
        # Only the shadow of ``high`` itself begins with its inverted key.
        rows = await snapshot.scan(
            prefix + inverted(high) + b"\0", prefix + inverted(low) + b"\0", limit
        )
        return [(upright(key[len(prefix) :]), value[1:]) for key, value in rows]
    start, end, cut = _range(layout, place, bounds)
    kept: deque[Pair] = deque()
    for wider in (*_WIDER, None):
        from_ = start if wider is None else max(start, below(end, limit * wider))
        kept = await _last(snapshot, from_, end, limit)
        if len(kept) == limit or from_ == start:
            break
    return [(key[cut:], value[1:]) for key, value in reversed(kept)]


def _range(
    layout: Layout, place: tuple[int, int], bounds: tuple[bytes, bytes | None]
) -> tuple[bytes, bytes, int]:
    prefix = layout.rows(*place)
    low, high = bounds
    return prefix + low, after(prefix) if high is None else prefix + high, len(prefix)


def _one_table(low: bytes, high: bytes) -> bytes | None:
    """The table that holds all keys from ``low`` to below ``high``, if one does."""
    table = low[:1]
    if table and (high[:1] == table or high == bytes([min(255, table[0] + 1)])):
        return table
    return None


async def _last(snapshot: Snapshot, start: bytes, end: bytes, limit: int) -> deque[Pair]:
    kept: deque[Pair] = deque(maxlen=limit)
    while start < end:
        page = await snapshot.scan(start, end, SCAN_ROWS_MAX)
        kept.extend(page)
        if len(page) < SCAN_ROWS_MAX:
            break
        start = page[-1][0] + b"\0"
    return kept
