"""One partition of a topic read on from where the last look ended, keys and times included."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import ConsumerRecord, TopicPartition

from imcore.errors import Damaged, Unavailable
from services.engines.kafka.cluster import READ, At, Cluster, Gone, NoTopic

_PIECE_BYTES = 128 << 10  # what is parsed between two turns of the loop


@dataclass(slots=True)
class TopicTail:
    """One partition, read on from where the last look ended. ``skip``: how many records before
    the end the first look begins; None: with the first that there is."""

    at: At
    skip: int | None
    next: int | None = None


async def read_on(cluster: Cluster, tail: TopicTail) -> list[ConsumerRecord[bytes, bytes]]:
    """What is new, up to the end. A topic that is not there yet holds nothing. Raises
    Unavailable, Damaged."""
    found: list[ConsumerRecord[bytes, bytes]] = []
    try:
        if tail.next is None:
            first, end = await cluster.bounds(tail.at)
            tail.next = first if tail.skip is None else max(first, end - tail.skip)
        while True:
            records, following, end = await _fetch(cluster, tail.at, tail.next)
            found += records
            tail.next = max(tail.next, following)
            if tail.next >= end or (not records and following <= tail.next):
                return found
            await asyncio.sleep(0)
    except NoTopic:
        tail.next = None
        return found
    except Gone:  # compacted or made anew under us: begin again with the next look
        tail.next = None
        return found


async def _fetch(
    cluster: Cluster, at: At, offset: int
) -> tuple[list[ConsumerRecord[bytes, bytes]], int, int]:
    """Records with their keys and times, where to read on, and the committed end."""
    node = await cluster.leader(at)
    rows = [(at.topic, [(at.partition, offset, _PIECE_BYTES)])]
    request = FetchRequest(0, 0, _PIECE_BYTES, READ_COMMITTED, rows)
    reply = await cluster.call(node, request, READ)
    for _, partitions in reply.topics:
        for _, code, _, stable, *rest in partitions:
            what = f"read {at.topic} from offset {offset}"
            if code:
                cluster.moved(at, code)
                raise cluster.translated(for_code(code)(), what)
            records = PartitionRecords(
                TopicPartition(*at),
                MemoryRecords(rest[-1]),
                rest[1],
                offset,
                None,
                None,
                True,
                READ_COMMITTED,
            )
            try:
                return list(records), records.next_fetch_offset, stable
            except CorruptRecordException as error:
                raise Damaged(f"{cluster}: {what}: {error}") from error
    raise Unavailable(f"{cluster} leaves {at.topic} out")
