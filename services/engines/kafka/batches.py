"""Kafka's record batches: our packed records in, and out of what a fetch brings.

Offsets of aborted transactions and control batches never come out; MirrorMaker 2 writes in
transactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

_OVERHEAD_BYTES = 32  # of one record in a batch, at most
BATCH_BYTES = 1 << 20


class Producer(NamedTuple):
    """An idempotent producer's identity, as the broker gave it."""

    id: int
    epoch: int


def encode(
    values: Sequence[bytes], producer: Producer, sequence: int, keys: Sequence[bytes] = ()
) -> bytes:
    """One batch, uncompressed; with keys it is part of a transaction."""
    size = sum(map(len, (*values, *keys))) + (len(values) + 4) * _OVERHEAD_BYTES
    builder = DefaultRecordBatchBuilder(
        2, 0, int(bool(keys)), producer.id, producer.epoch, sequence, size
    )
    for offset, value in enumerate(values):
        if builder.append(offset, None, keys[offset] if keys else None, value, []) is None:
            raise ValueError("the batch is larger than was reckoned")
    return bytes(builder.build())


class Fetched(NamedTuple):
    """Of one partition. ``next``: where to read on; ``end``: the offset behind the last one that is
    committed and in all in-sync replicas; ``start``: the lowest one still stored."""

    records: list[tuple[int, bytes]]  # offset, value
    next: int
    end: int
    start: int


def decode(
    topic: str, partition: int, offset: int, data: Any, aborted: Any, end: int, start: int
) -> Fetched:
    """Raises CorruptRecordException."""
    partition_records = PartitionRecords(
        TopicPartition(topic, partition),
        MemoryRecords(data),
        aborted,
        offset,
        None,
        None,
        True,
        READ_COMMITTED,
    )
    records = [(record.offset, record.value or b"") for record in partition_records]
    return Fetched(records, partition_records.next_fetch_offset, end, start)
