"""What a log store remembers: a compacted topic of one partition, read whole when it is opened.

Written in transactions with one fixed transactional id: whoever opens the store takes the id over,
and the broker then refuses what an older process of this IDC still sends. Whoever is refused, or
does not know what became of a write, takes the id again and reads the topic before it writes on: a
boot count above its own says that a newer process owns the store (StaleWriter), for good.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from imcore.errors import StaleWriter, Unavailable
from services.engines.kafka.cluster import At, Cluster
from services.engines.kafka.settings import meta_topic
from services.engines.kafka.transactions import Fenced, Transactions

STORE = "store"
_READ_BYTES = 1 << 20


class Meta:
    """``values``: what is written down, as JSON documents by key."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._at = At(meta_topic(cluster.settings.prefix), 0)
        self._transactions = Transactions(cluster, self._at.topic)
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
        await self.put_made(lambda: values)

    async def put_made(self, make: Callable[[], Mapping[str, Any]]) -> None:
        """What ``make`` gives when its turn has come: whoever put something before has gone on by
        then, so that nothing older than that is put over it. Raises as ``put``."""
        async with self._writing:
            values = make()
            if not values:
                return
            rows = [
                json.dumps([key, value], separators=(",", ":")).encode()
                for key, value in values.items()
            ]
            if not self._transactions.held:
                await self._take()
            try:
                await self._transactions.write(self._at, rows, list(values))
            except Fenced:
                await self._take()  # raises StaleWriter when a newer process did it
                try:
                    await self._transactions.write(self._at, rows, list(values))
                except Fenced as error:
                    raise Unavailable("somebody else opens this log store as well") from error
            self.values.update(values)

    async def _take(self) -> None:
        """The transactional id, then all that is there: nobody else can write in between."""
        try:
            await self._transactions.take()
            self.values = await self._read()
        except Fenced as error:
            raise Unavailable("somebody else opens this log store as well") from error
        except BaseException:
            self._transactions.drop()
            raise
        boot = self.values.get(STORE, {}).get("pending", 0)
        if self._boot and boot > self._boot:
            self._transactions.drop()
            raise StaleWriter(
                f"the log store of {self._cluster.name} was opened by a newer process (boot {boot})"
            )

    async def _read(self) -> dict[str, Any]:
        offset, end = await self._cluster.bounds(self._at)
        values: dict[str, Any] = {}
        while offset < end:
            page = await self._cluster.fetch_one(self._at, offset, _READ_BYTES)
            for _, data in page.records:
                key, value = json.loads(data)
                values[key] = value
            if page.next <= offset:
                raise Unavailable(f"{self._cluster} does not give what {self._at.topic} holds")
            offset = page.next
        return values
