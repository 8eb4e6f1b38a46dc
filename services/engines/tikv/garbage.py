"""Rows that nobody sees any more: of generations that are not current, and old versions.

Each is work for later, in small pieces, and whatever a process leaves undone the next one finds:
when it opens a partition, every generation but the current one is garbage of the past.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from imcore.errors import ImError
from services.engines.tikv.client import TikvClient, Transaction
from services.engines.tikv.layout import Layout

log = logging.getLogger("im.kv")

_ROWS = 256  # in one transaction
_REST_FACTOR = 2.0  # a sweep takes this share of its time off
_RETRY_S = 5.0
# TiKV keeps old versions until somebody moves the safe point on, which TiDB does where there is
# one. Snapshots read at one timestamp as long as they take: less than this.
VERSIONS_KEPT_S = 3_600.0
_COLLECT_EVERY_S = 600.0
_COLLECT_WITHIN_S = 120.0
_MS_SHIFT = 18  # a timestamp's lower bits are a counter


class Garbage:
    def __init__(self, client: TikvClient, layout: Layout) -> None:
        self._client = client
        self._layout = layout
        self._tasks: set[asyncio.Task[None]] = set()
        self._collecting: asyncio.Task[None] | None = None

    def drop(self, partition: int, first: int, end: int) -> None:
        """The generations from ``first`` to below ``end``; returns at once."""
        if first < end:
            self._spawn(self._sweep(partition, first, end))

    def collect_versions(self) -> None:
        """From now on, again and again."""
        self._collecting = asyncio.get_running_loop().create_task(self._collect())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self, partition: int, first: int, end: int) -> None:
        loop = asyncio.get_running_loop()
        for low, high in self._layout.garbage(partition, first, end):
            more = True
            while more:
                began = loop.time()
                try:
                    more = await self._piece(low, high)
                except ImError as error:
                    log.debug("garbage of partition %d stays for now: %s", partition, error)
                    await asyncio.sleep(_RETRY_S)
                await asyncio.sleep(_REST_FACTOR * (loop.time() - began))

    async def _piece(self, low: bytes, high: bytes) -> bool:
        async def delete(transaction: Transaction) -> int:
            keys = await transaction.scan_keys(low, high, _ROWS)
            await transaction.delete(keys)
            return len(keys)

        async def look(transaction: Transaction) -> bool:
            return await delete(transaction) == _ROWS

        return await self._client.write(look)

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(_COLLECT_EVERY_S)
            await self.collect_once(VERSIONS_KEPT_S)

    async def collect_once(self, kept_s: float) -> None:
        try:
            now = await self._client.timestamp()
            until = now - (int(kept_s * 1000) << _MS_SHIFT)
            await self._client.collect_garbage(until, _COLLECT_WITHIN_S)
        except ImError as error:
            log.warning("old versions stay for now: %s", error)

    async def idle(self) -> None:
        """Until no sweep is under way; for tests."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        tasks = [*self._tasks, *([self._collecting] if self._collecting else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
