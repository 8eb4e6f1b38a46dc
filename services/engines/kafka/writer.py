"""Writes batches to one topic, idempotently, each once, and never hides what became of one.

A partition has at most one batch in flight. Batches of several partitions that one broker leads
share a request, and those that become ready while a request is under way share the next one.

A batch is sent once. What the broker says before it appends is a refusal (``Unavailable``: surely
not done); everything else that is not a success is ``OutcomeUnknown``. "Not the leader" belongs
there: a broker says it too when it has lost the lead after it appended. After any failure the
partition's producer id is discarded: the broker then takes nothing more that follows the lost
batch, but the lost batch itself may still land.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    InvalidProducerEpoch,
    KafkaStorageError,
    MessageSizeTooLargeError,
    NotEnoughReplicasError,
    OutOfOrderSequenceNumber,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from imcore.errors import ImError, OutcomeUnknown
from services.engines.kafka.batches import Producer, encode
from services.engines.kafka.cluster import WRITE, At, Cluster

_ALL = -1
_RETRY_S = 0.1
_SOON = (CoordinatorLoadInProgressError, CoordinatorNotAvailableError)
_REFUSED = (
    InvalidProducerEpoch,
    MessageSizeTooLargeError,
    NotEnoughReplicasError,  # said before the append; the other one, after it, is unknown
    OutOfOrderSequenceNumber,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownProducerId,
    UnknownTopicOrPartitionError,
)


class _Batch(NamedTuple):
    data: bytes
    done: asyncio.Future[int]


class _Sequence:
    """What the broker expects next of one partition."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.next = 0


class Writer:
    def __init__(self, cluster: Cluster, topic: str) -> None:
        self._cluster = cluster
        self._topic = topic
        self._sequences: dict[int, _Sequence] = {}
        self._ready: dict[int, dict[int, _Batch]] = {}  # by broker and partition
        self._flights: dict[int, asyncio.Task[None]] = {}

    async def write(self, partition: int, values: Sequence[bytes]) -> int:
        """The offset of the first; durable when it returns. One call at a time for a partition.
        Raises Unavailable, OutcomeUnknown."""
        sequence = self._sequences.get(partition)
        if sequence is None:
            sequence = self._sequences[partition] = _Sequence(await self._producer())
        node = await self._cluster.leader(At(self._topic, partition))
        data = encode(values, sequence.producer, sequence.next)
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._ready.setdefault(node, {})[partition] = _Batch(data, done)
        if node not in self._flights:
            self._flights[node] = asyncio.ensure_future(self._fly(node))
        try:
            offset = await done
        except BaseException:
            self.discard(partition)
            raise
        sequence.next = (sequence.next + len(values)) & 0x7FFFFFFF
        return offset

    def discard(self, partition: int) -> None:
        """The next batch comes from another producer."""
        self._sequences.pop(partition, None)

    async def close(self) -> None:
        for flight in self._flights.values():
            flight.cancel()
        await asyncio.gather(*self._flights.values(), return_exceptions=True)

    async def _producer(self) -> Producer:
        request = InitProducerIdRequest(None, 0)  # no transactions
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._cluster.settings.deadline_s
        while True:
            reply = await self._cluster.ask(request)
            if not reply.error_code:
                return Producer(reply.producer_id, reply.producer_epoch)
            # A broker that has just started has none to give yet.
            if for_code(reply.error_code) not in _SOON or loop.time() >= deadline:
                self._cluster.check(reply.error_code, "get a producer id")
            await asyncio.sleep(_RETRY_S)

    async def _fly(self, node: int) -> None:
        try:
            while batches := self._ready.pop(node, None):
                try:
                    reply = await self._send(node, batches)
                except ImError as error:
                    for batch in batches.values():
                        _fail(batch, error)
                except asyncio.CancelledError:
                    for batch in batches.values():
                        _fail(batch, OutcomeUnknown(f"writing to {self._topic} was cancelled"))
                    raise
                else:
                    self._settle(batches, reply)
        finally:
            del self._flights[node]

    async def _send(self, node: int, batches: dict[int, _Batch]) -> Any:
        partitions = [(partition, batch.data) for partition, batch in batches.items()]
        wait_ms = int(self._cluster.settings.deadline_s * 1000)
        request = ProduceRequest(None, _ALL, wait_ms, [(self._topic, partitions)])
        led = [At(self._topic, partition) for partition in batches]
        return await self._cluster.call(node, request, WRITE, write=True, led=led)

    def _settle(self, batches: dict[int, _Batch], reply: Any) -> None:
        for topic, partitions in reply.topics:
            for partition, code, offset, *_ in partitions:
                batch = batches.pop(partition, None)
                if batch is None:
                    continue
                if code:
                    self._cluster.moved(At(topic, partition), code)
                    _fail(batch, self._failure(code, partition))
                elif offset < 0:
                    _fail(batch, OutcomeUnknown(f"{self._cluster} does not say where it wrote"))
                elif not batch.done.done():
                    batch.done.set_result(offset)
        for batch in batches.values():
            _fail(batch, OutcomeUnknown(f"{self._cluster} left a partition out of its answer"))

    def _failure(self, code: int, partition: int) -> Exception:
        error = for_code(code)
        what = f"write to {self._topic} partition {partition}"
        if error is KafkaStorageError:
            return OutcomeUnknown(
                f"{self._cluster} cannot {what}: its disk fails; it may be full, its own log says"
            )
        return self._cluster.translated(error(), what, write=error not in _REFUSED)


def _fail(batch: _Batch, error: Exception) -> None:
    if batch.done.done():
        return
    # A copy each: the traceback of one waiter is not another's.
    batch.done.set_exception(type(error)(str(error)) if isinstance(error, ImError) else error)
