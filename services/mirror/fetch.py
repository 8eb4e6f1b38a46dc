"""Fetches another IDC's snapshot into a file, checking all of it against what was announced."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc

from imcore.errors import Damaged, Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc

_CHUNK_S = 10.0  # the longest wait for a piece
_HEADER_S = 600.0  # before it the giver reads all of its snapshot, to check it


class Fetch:
    """First ``header``, then ``into`` if it is wanted; ``cancel`` in the end."""

    def __init__(self, channel: grpc.aio.Channel, source: str) -> None:
        self._source = source
        self._call = rpc.LogsStub(channel).Snapshot(peer.SnapshotRequest())

    async def header(self) -> peer.SnapshotHeader:
        """Raises Unavailable when there is no snapshot to be had."""
        chunk = await self._next(_HEADER_S)
        if chunk is None or not chunk.HasField("header"):
            raise Unavailable(f"{self._source} does not announce its snapshot")
        return chunk.header

    async def into(self, path: Path, header: peer.SnapshotHeader) -> None:
        """Durable when it returns. Raises Unavailable, Damaged."""
        digest, size = hashlib.blake2b(digest_size=16), 0
        with await asyncio.to_thread(open, path, "wb") as file:
            async for data, offset in self._pieces():
                if offset != size:
                    raise Damaged(f"{self._source} sent a snapshot with a gap at {size}")
                await asyncio.to_thread(file.write, data)
                digest.update(data)
                size += len(data)
            await asyncio.to_thread(file.flush)
            await asyncio.to_thread(os.fsync, file.fileno())
        if size != header.size or digest.hexdigest() != header.digest:
            raise Damaged(f"the snapshot that {self._source} sent fails its check")

    async def _pieces(self) -> AsyncIterator[tuple[bytes, int]]:
        while (chunk := await self._next()) is not None:
            yield chunk.data, chunk.offset

    async def _next(self, within_s: float = _CHUNK_S) -> peer.SnapshotChunk | None:
        try:
            async with asyncio.timeout(within_s):
                chunk = await self._call.read()
        except (grpc.RpcError, TimeoutError) as error:
            said = error.details() if isinstance(error, grpc.aio.AioRpcError) else "it is silent"
            raise Unavailable(f"no snapshot from {self._source}: {said}") from error
        return chunk if isinstance(chunk, peer.SnapshotChunk) else None

    def cancel(self) -> None:
        self._call.cancel()
