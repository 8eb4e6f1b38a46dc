"""What a source sends, read while what came before is being written.

A batch is small, because its source sends one each few milliseconds. A disk that takes longer than
that for an fsync would fall behind with every batch, and what the stream holds in its windows would
be minutes old; so all that has come meanwhile is handed over together, for one fsync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from imcore.proto import peer_pb2 as peer

BYTES_MAX = 4 * 1024 * 1024  # beyond it the source has to wait


class Incoming:
    """``read``: the next batch of the stream. ``close`` when done."""

    def __init__(self, read: Callable[[], Awaitable[peer.TailBatch]]) -> None:
        self._read = read
        self._together: peer.TailBatch | None = None
        self._bytes = 0
        self._failed: BaseException | None = None
        self._come = asyncio.Event()
        self._room = asyncio.Event()
        self._reading = asyncio.ensure_future(self._run())

    async def next(self) -> peer.TailBatch:
        """All that has come since the last call, at least one batch. Raises what ``read`` did, once
        everything before was handed over."""
        await self._come.wait()
        self._come.clear()
        together, self._together, self._bytes = self._together, None, 0
        self._room.set()
        if together is not None:
            if self._failed is not None:
                self._come.set()
            return together
        assert self._failed is not None
        raise self._failed

    def close(self) -> None:
        self._reading.cancel()

    async def _run(self) -> None:
        try:
            while True:
                batch = await self._read()
                if self._together is None:
                    self._together = batch
                else:
                    self._together.MergeFrom(batch)
                self._bytes += batch.ByteSize()
                self._come.set()
                while self._bytes >= BYTES_MAX:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._failed = error
            self._come.set()
