"""What one IDC takes from another: batches of a log's records, and requests for its ends. Whatever
comes, only the documented errors are raised (the follower goes on after those), and afterwards the
true log is still taken: nothing that was not its own has come into the copy.

An input is a row of batches (``fuzz.messages``)."""

from __future__ import annotations

import random

from google.protobuf.message import DecodeError

from fuzz import messages
from fuzz.lab import Loop
from fuzz.memory_disk import MemoryDisk
from fuzz.target import Target
from imcore.errors import ImError
from imcore.proto import peer_pb2 as peer
from imcore.runtime import ManualClock
from imcore.words import Origin
from services.engines.log_store import SegmentLogStore
from services.engines.records import EMPTY_END, pack, records_after
from services.mirror.follow import Follower, SourceDamaged
from services.mirror.progress import Progress
from services.ports import Record

IAD, PARTITIONS, BATCHES_MAX = Origin("iad", 1), 2, 8
RECORDS = [
    records_after(EMPTY_END, partition, 1, [bytes([n]) * n for n in range(1, 9)])
    for partition in range(PARTITIONS)
]
_loop = Loop()


def check(data: bytes) -> None:
    _loop.run(_check(messages.bodies(data)[:BATCHES_MAX]), watched=False)  # it says what is wrong


async def _check(bodies: list[bytes]) -> None:
    store = await SegmentLogStore.open("log", PARTITIONS, MemoryDisk(), random.Random(1))
    await store.open_own(Origin("fra", 1))
    follower = Follower(
        "iad", "fra", PARTITIONS, store, {}, Progress(lambda *_: None, PARTITIONS),
        lambda origin: {}, lambda origin, partition: None, ManualClock(), source="iad",
    )  # fmt: skip
    copy = await store.open_copy(IAD)
    try:
        for body in bodies:
            try:
                batch = peer.TailBatch.FromString(body)
            except DecodeError:
                continue  # gRPC ends the stream
            try:
                await follower.take("iad", copy, IAD, batch)
            except (ImError, SourceDamaged):
                continue
        await follower.take("iad", copy, IAD, _batch(*RECORDS))
        follower.behind()
        for number, records in enumerate(RECORDS):
            held: list[Record] = []
            while len(held) < len(records):
                held += await copy.read(number, len(held) + 1, 1 << 20)
            assert held == records, "the copy is not the log"
    finally:
        await store.close()


def _batch(*logs: list[Record]) -> peer.TailBatch:
    batch = peer.TailBatch()
    for records in logs:
        for record in records:
            batch.records.add(partition=record.partition, record=pack(record))
        last = records[-1]
        batch.ends.add(partition=last.partition, lsn=last.lsn, chain=last.chain, first_lsn=1)
    return batch


BATCHES = [
    _batch(RECORDS[0][:2]), _batch(RECORDS[0][2:5], RECORDS[1]), _batch(RECORDS[1][3:4]),
    peer.TailBatch(damaged=[peer.PartitionEnd(partition=1, lsn=3)]),
    peer.TailBatch(truncated_below=True),
]  # fmt: skip


def seeds() -> list[bytes]:
    encoded = [batch.SerializeToString() for batch in BATCHES]
    return [messages.row(encoded), *(messages.row([one]) for one in encoded)]


def mutate(data: bytes, seed: int, bytes_max: int) -> bytes:
    return messages.mutated(peer.TailBatch, data, seed, bytes_max, BATCHES)


TARGET = Target("mirror", check, seeds, mutate=mutate)
