"""What a log store remembers: a compacted topic of one partition, read whole when it is opened.

Written in transactions with one fixed transactional id: whoever opens the store takes the id over,
and the broker then refuses what an older process of this IDC still sends. Whoever is refused, or
does not know what became of a write, takes the id again and reads the topic before it writes on: a
boot count above its own says that a newer process owns the store (StaleWriter), for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerFenced

from imcore.errors import OutcomeUnknown, StaleWriter, Unavailable
from services.engines.kafka.cluster import At, Cluster, NotTrusted
from services.engines.kafka.settings import meta_topic

STORE = "store"
_TRANSACTION_MS = 10_000
_READ_BYTES = 1 << 20
_STOP_S = 1.0


class Meta:
    """``values``: what is written down, as JSON documents by key."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._topic = meta_topic(cluster.settings.prefix)
        self._producer: AIOKafkaProducer | None = None
        self._writing = asyncio.Lock()
        self._boot = 0  # 0: not ours yet
        self.values: dict[str, Any] = {}

    async def open(self) -> None:
        """Take it over, and read it. Raises Unavailable."""
        async with self._writing:
            await self._take()

    def own(self, boot: int) -> None:
        """From now on only a higher boot count takes it away."""
        self._boot = boot

    async def put(self, values: Mapping[str, Any]) -> None:
        """All or none, durable. Raises StaleWriter, Unavailable, OutcomeUnknown."""
        async with self._writing:
            try:
                if self._producer is None:
                    await self._take()
                try:
                    await self._write(values)
                except ProducerFenced:
                    await self._take()  # raises StaleWriter when a newer process did it
                    await self._write(values)
            except (KafkaError, TimeoutError, OSError) as error:
                await self._discard()
                said = str(error) or type(error).__name__
                raise OutcomeUnknown(f"{self._cluster} did not confirm a note: {said}") from error
            self.values.update(values)

    async def close(self) -> None:
        await self._discard()

    async def _write(self, values: Mapping[str, Any]) -> None:
        producer = self._producer
        assert producer is not None
        async with asyncio.timeout(self._cluster.settings.deadline_s):
            # Not as a context manager: that one aborts on a time-out, and waits for it unbounded.
            await producer.begin_transaction()
            for key, value in values.items():
                # The key is for the broker, which keeps the last value of each.
                data = json.dumps([key, value], separators=(",", ":")).encode()
                await producer.send(self._topic, data, key.encode(), partition=0)
            await producer.commit_transaction()

    async def _take(self) -> None:
        """The transactional id, then all that is there: nobody else can write in between."""
        await self._discard()
        settings = self._cluster.settings
        secure = "SSL" if self._cluster.ssl is not None else "PLAINTEXT"
        producer = AIOKafkaProducer(
            bootstrap_servers=list(settings.brokers),
            client_id="imctl-meta",
            transactional_id=self._topic,
            transaction_timeout_ms=_TRANSACTION_MS,
            request_timeout_ms=int(settings.deadline_s * 1000),
            ssl_context=self._cluster.ssl,
            security_protocol=f"SASL_{secure}" if settings.username else secure,
            sasl_mechanism="SCRAM-SHA-512" if settings.username else "PLAIN",
            sasl_plain_username=settings.username or None,
            sasl_plain_password=settings.password or None,
        )
        self._producer = producer
        try:
            async with asyncio.timeout(settings.deadline_s):
                await producer.start()
        except (KafkaError, TimeoutError, OSError) as error:
            await self._discard()
            if type(error).__name__ == "TransactionalIdAuthorizationFailed":
                raise NotTrusted(
                    f"{self._cluster} does not let this certificate or user write in transactions"
                ) from error
            said = str(error) or "no answer in time"
            raise Unavailable(f"{self._cluster} cannot be written: {said}") from error
        self.values = await self._read()
        boot = self.values.get(STORE, {}).get("pending", 0)
        if self._boot and boot > self._boot:
            await self._discard()
            raise StaleWriter(
                f"the log store of {self._cluster.name} was opened by a newer process (boot {boot})"
            )

    async def _read(self) -> dict[str, Any]:
        at = At(self._topic, 0)
        offset, end = await self._cluster.bounds(at)
        values: dict[str, Any] = {}
        while offset < end:
            page = await self._cluster.fetch_one(at, offset, _READ_BYTES)
            for _, data in page.records:
                key, value = json.loads(data)
                values[key] = value
            if page.next <= offset:
                raise Unavailable(f"{self._cluster} does not give what {self._topic} holds")
            offset = page.next
        return values

    async def _discard(self) -> None:
        """The library waits for what it cannot finish any more: not for longer than a moment."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_STOP_S):
                await producer.stop()
                return
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_STOP_S):
                await producer.client.close()
