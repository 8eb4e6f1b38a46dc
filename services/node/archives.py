"""What operators copy out of the KV into an archive, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc

from imcore.convert import origin_pb
from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.words import Origin
from services.im import archived
from services.im.partition import Partition
from services.ports import Kv

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_CHUNK_BYTES = 256 * 1024


class ArchivesService(rpc.ArchivesServicer):
    """``current``: the origins under which IDCs accept that are not retired. ``retired``: names of
    the others. ``seals``: of each partition, where sealed origins end."""

    def __init__(
        self,
        current: Callable[[], Sequence[Origin]],
        retired: Callable[[], frozenset[str]],
        seals: Callable[[int], dict[Origin, int]],
    ) -> None:
        self._current = current
        self._retired = retired
        self._seals = seals
        self.kv: Kv | None = None  # once it is open
        self.partitions: Sequence[Partition] = ()

    def closed(self) -> int:
        """See ``archived.closed_hlc``: of all partitions together."""
        return min(
            (
                archived.closed_hlc(
                    partition.applier.closed,
                    partition.applier.applied(),
                    self._current(),
                    self._seals(partition.number),
                )
                for partition in self.partitions
            ),
            default=0,
        )

    async def Closed(self, request: peer.ClosedRequest, context: Context) -> peer.ClosedReply:
        await self._check_whole(context)
        reply = peer.ClosedReply(hlc=self.closed(), retired=sorted(self._retired()))
        by_origin: dict[Origin, peer.OriginEnds] = {}
        for partition in self.partitions:
            for origin, lsn in partition.applier.applied().items():
                ends = by_origin.setdefault(origin, peer.OriginEnds(origin=origin_pb(origin)))
                ends.applied.add(partition=partition.number, lsn=lsn)
        reply.ends.extend(by_origin[origin] for origin in sorted(by_origin))
        return reply

    async def Read(
        self, request: peer.ArchiveRequest, context: Context
    ) -> AsyncIterator[peer.ArchiveChunk]:
        await self._check_whole(context)
        if request.until > self.closed():
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "messages may still be added to that range"
            )
        begun = [partition.applier.begun for partition in self.partitions]
        try:
            async for chunk in self._chunks(request):
                yield chunk
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        await self._check_whole(context)
        if begun != [partition.applier.begun for partition in self.partitions]:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "a partition was folded again")

    async def _chunks(self, request: peer.ArchiveRequest) -> AsyncIterator[peer.ArchiveChunk]:
        assert self.kv is not None
        for partition in self.partitions:
            chunk, size = peer.ArchiveChunk(partitions_done=partition.number), 0
            pages = archived.read(self.kv, partition.number, request.after, request.until)
            async for page in pages:
                for message in page:
                    chunk.counted += not message.again
                    chunk.counted_again += message.again
                    if request.count_only:
                        continue
                    chunk.messages.append(message)
                    size += message.ByteSize()
                    if size >= _CHUNK_BYTES:
                        yield chunk
                        chunk, size = peer.ArchiveChunk(partitions_done=partition.number), 0
            chunk.partitions_done += 1
            yield chunk

    async def _check_whole(self, context: Context) -> None:
        if self.kv is None or any(p.conversations.withheld for p in self.partitions):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "its state is not whole yet")
