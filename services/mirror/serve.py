"""The source's side: serves the own log, and durable copies of others', to whoever follows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import grpc

from imcore.convert import origin_of, origin_pb
from imcore.errors import Damaged
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import Clock
from imcore.tls import caller_name
from imcore.words import Origin
from services.engines.records import pack
from services.mirror.progress import Progress
from services.ports import Log, LogStore, Record

log = logging.getLogger("im.mirror")

_BATCH_BYTES = 256 * 1024  # of one batch, whatever the number of partitions
_RECORD_BYTES = 16  # at most what a record takes in a batch beyond its own bytes
_SOUND_MAX = 100  # records read one by one before a damaged one
_IDLE_S = 0.5
# At least so far apart, unless there is much to catch up on. What a small batch costs (a gRPC
# message at both ends and in between, an fsync and a fold at the reader) hardly depends on how many
# records it has: at 100 messages/s an IDC, it is half of what replication costs, for 10 ms more on
# links of 45 ms and up.
_PACE_S = 0.02
_ANNOUNCE_S = 0.1  # between announcements: nothing waits for them but what looks for gaps

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Applied = Callable[[Origin], dict[int, int]]


class Offer(NamedTuple):
    """A snapshot that another IDC may start from."""

    name: str
    file: Path
    digest: str  # of the whole file
    description: str  # services.retention.shelf


class LogsService(rpc.LogsServicer):
    """One instance an IDC; it starts before the IDC knows its own incarnation (``origin`` None),
    because its peers need its copies to settle theirs."""

    def __init__(
        self,
        idc: str,
        store: LogStore,
        partitions: int,
        progress: Progress,
        applied: Applied,
        clock: Clock,
    ) -> None:
        self._idc = idc
        self._store = store
        self._partitions = partitions
        self._progress = progress
        self._applied = applied
        self._clock = clock
        self._damaged: dict[tuple[Origin, int], int] = {}  # the first lsn that cannot be read
        self.origin: Origin | None = None
        self.starting = True  # what this IDC held once may still be on its way here
        self.seal_of: Callable[[Origin, int], int | None] = lambda origin, partition: None
        self.offer: Callable[[str], Awaitable[Offer | None]] | None = None  # to whom

    async def Tail(
        self,
        request_iterator: AsyncIterator[peer.TailRequest],
        context: Context,
    ) -> AsyncIterator[peer.TailBatch]:
        first = await anext(aiter(request_iterator))
        reader = caller_name(context)
        origin = origin_of(first.origin)
        if origin.idc == self._idc and self.origin is None:
            # It may be sealed below its end in a moment: what lies above is published again then.
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"{self._idc} settles its incarnation")
            return
        source = self._store.held().get(origin)
        if source is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{self._idc} has no log of {origin}")
            return
        self._progress.report(reader, origin, first.held, first.applied)
        reports = asyncio.ensure_future(self._reports(request_iterator, reader, origin))
        try:
            start = {end.partition: end.lsn + 1 for end in first.held}
            batches = self._announced(source) if first.ends_only else self._batches(source, start)
            async for batch in batches:
                yield batch
        finally:
            reports.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
                await reports

    async def _reports(
        self, requests: AsyncIterator[peer.TailRequest], reader: str, origin: Origin
    ) -> None:
        async for request in requests:
            held = request.held
            self._progress.report(reader, origin, held, request.applied)

    async def _announced(self, source: Log) -> AsyncGenerator[peer.TailBatch, None]:
        """How far the source has come, for who gets its records from elsewhere."""
        grown = asyncio.Event()
        unsubscribe = source.subscribe(grown.set)
        try:
            while True:
                grown.clear()
                yield peer.TailBatch(ends=self._ends(source))
                await asyncio.sleep(_ANNOUNCE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_S):
                        await grown.wait()
        finally:
            unsubscribe()

    async def _batches(
        self, source: Log, next_lsn: dict[int, int]
    ) -> AsyncGenerator[peer.TailBatch, None]:
        grown = asyncio.Event()
        unsubscribe = source.subscribe(grown.set)
        now, first = self._clock.now, 0
        try:
            while True:
                grown.clear()
                batch, room, begun = peer.TailBatch(), _BATCH_BYTES, now()
                for step in range(self._partitions):
                    partition = (first + step) % self._partitions
                    room -= await self._read(source, partition, next_lsn, batch, room)
                    if room <= 0:
                        # The others come first next time, or one with a backlog would starve them.
                        first = (partition + 1) % self._partitions
                        break
                if not batch.records:
                    batch.ends.extend(self._ends(source))
                yield batch
                if batch.records:
                    if room > 0:
                        await asyncio.sleep(max(0.0, begun + _PACE_S - now()))
                else:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_IDLE_S):
                            await grown.wait()
        finally:
            unsubscribe()

    async def _read(
        self,
        source: Log,
        partition: int,
        next_lsn: dict[int, int],
        batch: peer.TailBatch,
        room: int,
    ) -> int:
        """Returns how many bytes it has added: at most one record more than there is room for."""
        lsn, end = next_lsn.get(partition, 1), self._end(source, partition)
        if lsn > end:
            return 0
        try:
            records = await source.read(partition, lsn, room)
        except LookupError:
            batch.truncated_below = True
            return 0
        except Damaged as error:
            records = await self._sound_ones(source, partition, lsn)
            if not records:
                batch.damaged.add(partition=partition, lsn=lsn)
                self._note_damage(source.origin, partition, lsn, error)
        size = 0
        for record in records:
            if record.lsn > end or size >= room:
                break
            packed = pack(record)
            batch.records.add(partition=partition, record=packed)
            next_lsn[partition] = record.lsn + 1
            size += len(packed) + _RECORD_BYTES
        return size

    async def _sound_ones(self, source: Log, partition: int, lsn: int) -> list[Record]:
        """Those before the damaged one."""
        records: list[Record] = []
        with contextlib.suppress(Damaged):
            while len(records) < _SOUND_MAX and (found := await source.read(partition, lsn, 1)):
                records += found
                lsn = found[-1].lsn + 1
        return records

    def _note_damage(self, origin: Origin, partition: int, lsn: int, error: Damaged) -> None:
        if self._damaged.get((origin, partition)) != lsn:
            log.error("lsn %d of %s partition %d cannot be read: %s", lsn, origin, partition, error)
        self._damaged[origin, partition] = lsn

    def alarms(self) -> list[str]:
        """Of records that are still to be held here, and cannot be read."""
        held = self._store.held()
        return [
            f"lsn {lsn} of {origin} partition {partition} is damaged here and cannot be read"
            for (origin, partition), lsn in self._damaged.items()
            if origin in held and held[origin].first_lsn(partition) <= lsn
        ]

    def _end(self, source: Log, partition: int) -> int:
        """What lies above a seal does not count as held, and is served to nobody."""
        end, seal = source.end(partition).lsn, self.seal_of(source.origin, partition)
        return end if seal is None else min(end, seal)

    def _ends(self, source: Log) -> list[peer.PartitionEnd]:
        return [
            peer.PartitionEnd(
                partition=partition,
                lsn=self._end(source, partition),
                chain=source.end(partition).chain,
                first_lsn=source.first_lsn(partition),
            )
            for partition in range(self._partitions)
        ]

    async def Ends(self, request: peer.EndsRequest, context: Context) -> peer.EndsReply:
        reply = peer.EndsReply(starting=self.starting)
        if self.origin is not None:
            reply.self.CopyFrom(origin_pb(self.origin))
        held = self._store.held()
        for origin, source in held.items():
            row = reply.origins.add(origin=origin_pb(origin))
            row.held.extend(self._ends(source))
            for partition, lsn in self._progress.announced.get(origin, {}).items():
                row.announced.add(partition=partition, lsn=lsn)
            for partition, lsn in self._applied(origin).items():
                row.applied.add(partition=partition, lsn=lsn)
        if request.at_lsn:
            reply.chain_at = await self._chain_at(held, request)
        return reply

    async def Snapshot(
        self, request: peer.SnapshotRequest, context: Context
    ) -> AsyncIterator[peer.SnapshotChunk]:
        reader = caller_name(context)
        offer = await self.offer(reader) if self.offer is not None else None
        if offer is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{self._idc} has no snapshot to offer")
            return
        log.info("%s fetches the snapshot %s", reader, offer.name)
        # Opened once: a newer snapshot may take this one's place while it is read.
        with await asyncio.to_thread(open, offer.file, "rb") as file:
            size = await asyncio.to_thread(file.seek, 0, 2)
            header = peer.SnapshotHeader(
                name=offer.name, size=size, digest=offer.digest, description=offer.description
            )
            yield peer.SnapshotChunk(header=header)
            await asyncio.to_thread(file.seek, 0)
            offset = 0
            while data := await asyncio.to_thread(file.read, _BATCH_BYTES):
                yield peer.SnapshotChunk(offset=offset, data=data)
                offset += len(data)

    async def _chain_at(self, held: dict[Origin, Log], request: peer.EndsRequest) -> bytes:
        source = held.get(origin_of(request.origin))
        if source is None:
            return b""
        with contextlib.suppress(LookupError, Damaged):
            records = await source.read(request.at_partition, request.at_lsn, 1)
            if records and records[0].lsn == request.at_lsn:
                return records[0].chain
        return b""
