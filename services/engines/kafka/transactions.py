"""Batches in transactions of one id: who takes the id over shuts all earlier holders out.

Single requests, like all of this package: take the id, and for a write add the partition, produce,
end. What did not end is aborted by the broker, when the id is taken again or after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    NotCoordinatorError,
    for_code,
)
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)

from imcore.errors import OutcomeUnknown, Unavailable
from services.engines.kafka.batches import Producer, encode
from services.engines.kafka.cluster import ADMIN, At, Cluster

TRANSACTION_MS = 10_000
_RETRY_S = 0.05
_BY_TRANSACTION = 1
_FENCED = 90
_SOON = (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    NotCoordinatorError,
)


class Fenced(Exception):
    """Somebody else has taken the id."""


class Transactions:
    def __init__(self, cluster: Cluster, id_: str) -> None:
        self._cluster = cluster
        self._id = id_
        self._producer: Producer | None = None
        self._sequence = 0

    @property
    def held(self) -> bool:
        """Whether the id was taken, and nothing has failed since."""
        return self._producer is not None

    def drop(self) -> None:
        self._producer = None

    async def take(self) -> None:
        """Raises Unavailable."""
        self._producer, self._sequence = None, 0
        reply = await self._ask(InitProducerIdRequest(self._id, TRANSACTION_MS), "take an id")
        self._producer = Producer(reply.producer_id, reply.producer_epoch)

    async def write(self, at: At, values: Sequence[bytes], keys: Sequence[str]) -> None:
        """All or none; the keys are for the broker, which keeps the last value of each. Raises
        Fenced (none), Unavailable (none), OutcomeUnknown; then the id must be taken again."""
        producer, self._producer = self._producer, None
        assert producer is not None
        add = AddPartitionsToTxnRequest(self._id, *producer, [(at.topic, [at.partition])])
        await self._ask(add, "begin a transaction")
        batch = encode(values, producer, self._sequence, [key.encode() for key in keys])
        await self._produce(at, batch)
        try:
            await self._ask(EndTxnRequest(self._id, *producer, True), "end a transaction")
        except Unavailable as error:
            raise OutcomeUnknown(str(error)) from error
        self._sequence += len(values)
        self._producer = producer

    async def _produce(self, at: At, batch: bytes) -> None:
        wait_ms = int(self._cluster.settings.deadline_s * 1000)
        request = ProduceRequest(self._id, -1, wait_ms, [(at.topic, [(at.partition, batch)])])
        # Nothing counts before the end of the transaction: whatever fails here was not done.
        node = await self._cluster.leader(at)
        reply = await self._cluster.call(node, request, ADMIN)
        for _, partitions in reply.topics:
            for _, code, *_ in partitions:
                self._cluster.moved(at, code)
                self._check(code, f"write to {at.topic}")

    async def _ask(self, request: Any, what: str) -> Any:
        """Of the coordinator, until it is there and has ended what was before."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._cluster.settings.deadline_s
        while True:
            found = await self._cluster.ask(FindCoordinatorRequest(self._id, _BY_TRANSACTION))
            code = found.error_code
            if not code:
                reply = await self._cluster.call(found.coordinator_id, request, ADMIN)
                code = _code(reply)
                if not code:
                    return reply
            if for_code(code) not in _SOON or loop.time() >= deadline:
                self._check(code, what)
            await asyncio.sleep(_RETRY_S)

    def _check(self, code: int, what: str) -> None:
        if code == _FENCED or for_code(code) in (InvalidProducerEpoch, InvalidProducerIdMapping):
            raise Fenced
        self._cluster.check(code, what)


def _code(reply: Any) -> int:
    """The first error that it tells of."""
    if hasattr(reply, "errors"):
        codes = [code for _, partitions in reply.errors for _, code in partitions]
        return next((code for code in codes if code), 0)
    return int(reply.error_code)
