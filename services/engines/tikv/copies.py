"""Between TiKV and the one form of snapshots (services.engines.lmdb_snapshot), page by page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from imcore.errors import OutcomeUnknown
from services.engines import lmdb_snapshot
from services.engines.disk import Disk
from services.engines.tikv.client import Pair, Snapshot, TikvClient, Transaction
from services.engines.tikv.layout import PARTITION_BYTES, PARTITIONS_END, Layout, Meta, parse
from services.engines.tikv.scans import scan

_PAGE_ROWS = 512
_PAGE_BYTES = 1 << 20
_PAGE_S = 10.0  # nobody waits for a page
_TRIES = 3
Rows = Callable[[int, int, Iterable[Pair]], Iterable[Pair]]


async def metas(snapshot: Snapshot, layout: Layout, first: int, last: int) -> dict[int, Meta]:
    """Those of the partitions that were ever opened, in order."""
    start, end = layout.metas(first, last)
    return {
        layout.partition_of_meta(key): parse(row)
        for key, row in await snapshot.scan(start, end, PARTITIONS_END)
    }


async def take(
    client: TikvClient,
    layout: Layout,
    timestamp: int,
    there: Mapping[int, Meta],
    folder: Path,
    disk: Disk,
) -> None:
    """All partitions, ``there``, as they are at the timestamp. Raises Unavailable, BadInput,
    Damaged."""
    writer = await asyncio.to_thread(lmdb_snapshot.Writer, folder, disk)
    try:
        for partition, meta in there.items():
            await asyncio.to_thread(writer.partition, partition, meta.epoch, meta.checkpoint)
            await _take_rows(client, layout, timestamp, (partition, meta.generation), writer)
        await asyncio.to_thread(writer.finish)
    except BaseException:
        await asyncio.to_thread(writer.abandon)
        raise


async def _take_rows(
    client: TikvClient,
    layout: Layout,
    timestamp: int,
    place: tuple[int, int],
    writer: lmdb_snapshot.Writer,
) -> None:
    number, start = place[0].to_bytes(PARTITION_BYTES, "big"), b""
    while True:

        async def one_page(snapshot: Snapshot, start: bytes = start) -> list[Pair]:
            return await scan(snapshot, layout, place, (start, None), _PAGE_ROWS)

        page = await client.read_at(timestamp, one_page, _PAGE_S)
        await asyncio.to_thread(writer.rows, [(number + key, value) for key, value in page])
        if len(page) < _PAGE_ROWS:
            return
        start = page[-1][0] + b"\0"


async def stage(client: TikvClient, folder: Path, place: tuple[int, int], stored: Rows) -> None:
    """Put a snapshot's rows of one partition where nobody looks yet: into a generation that is not
    current. Raises Unavailable, OutcomeUnknown, Damaged."""
    prefix, start = place[0].to_bytes(PARTITION_BYTES, "big"), b""
    while True:
        page = await asyncio.to_thread(lmdb_snapshot.rows_from, folder, start, prefix, _PAGE_ROWS)
        for piece in _pieces(page):
            await _put(client, list(stored(*place, piece)))
        if len(page) < _PAGE_ROWS:
            return
        start = page[-1][0] + b"\0"


def _pieces(page: list[Pair]) -> Iterable[list[Pair]]:
    piece: list[Pair] = []
    size = 0
    for pair in page:
        piece.append(pair)
        size += len(pair[0]) + len(pair[1])
        if size >= _PAGE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


async def _put(client: TikvClient, pairs: list[Pair]) -> None:
    """Until all are read back (redo.py). The same rows again do no harm, so an unknown outcome is
    no reason to end. Raises OutcomeUnknown when it comes again and again."""
    wanted, missing = dict(pairs), pairs
    for left in reversed(range(_TRIES)):

        async def put(transaction: Transaction, rows: list[Pair] = missing) -> None:
            await transaction.put(rows)

        async def look(snapshot: Snapshot) -> dict[bytes, bytes]:
            return await snapshot.get_many(list(wanted))

        try:
            await client.write(put, client.deadline(_PAGE_S))
        except OutcomeUnknown:
            if not left:
                raise
        found = await client.read(look)
        missing = [(key, value) for key, value in wanted.items() if found.get(key) != value]
        if not missing:
            return
    raise OutcomeUnknown(f"{client} did not take {len(missing)} rows of a snapshot")
