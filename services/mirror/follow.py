"""The copy's side: follows one other IDC's logs into durable copies (rule 3).

A record counts when it is fsynced in the copy; only then is it reported as held. The origin itself
is the first source; while it does not answer, whichever other IDC holds the longest copy is (a
relay of a copy, position and origin kept). Copies are chained by hash, so a record that
comes twice, or from two sources, is dropped or alarms; it never forks a copy. A source that cannot
read a record any more is left for another one until that record is here.

Where something else fills the copies (``LogStore.filled_from_outside``), the origin is only asked
for its ends, and told what is held and applied here. Its records are fetched when a copy that ends
below them has not moved for a while; those of an origin that does not answer, at once, from whoever
holds more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc

from imcore.convert import origin_of, origin_pb
from imcore.errors import Damaged, ImError
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import Clock
from imcore.words import Origin
from services.engines.records import unpack
from services.mirror.gaps import Gaps
from services.mirror.incoming import Incoming
from services.mirror.progress import Progress
from services.ports import Log, LogStore, Record
from services.tracing.context import of_payload
from services.tracing.spans import Tracing, wall_ns

log = logging.getLogger("im.mirror")

_RETRY_S = 0.3
_QUIET_S = 2.0  # a source says something each half second; longer than this it is lost
_AHEAD_S = 5.0
_REPORT_S = 0.05  # how often it is looked whether there is something to report
GAP_S = 3.0  # how long a gap may stay before it is filled from here

SealOf = Callable[[Origin, int], int | None]


class CutAway(Exception):
    """The source no longer has the records that come next here."""


class SourceDamaged(Exception):
    """The source has the record that comes next here, and cannot read it."""


@dataclass(slots=True)
class Follower:
    """Mirror of services.ports, over gRPC. ``channels``: how to reach every other IDC."""

    idc: str  # whose logs
    own: str
    partitions: int
    store: LogStore
    channels: Mapping[str, grpc.aio.Channel]
    progress: Progress
    applied: Callable[[Origin], dict[int, int]]
    seal_of: SealOf  # the last lsn that counts of an origin's partition, once it is sealed
    clock: Clock
    source: str = ""  # from whom the last batch came
    heard_at: float = 0.0
    missed: Callable[[str], None] | None = None
    gap_s: float = GAP_S
    tracing: Tracing | None = None
    _cut_away: set[str] = field(default_factory=set)  # sources that cannot serve the next records
    _ends: dict[Origin, dict[int, int]] = field(default_factory=dict)
    # Of partitions whose origin ends below the copy: the copy's end, and since when.
    _ahead: dict[tuple[Origin, int], tuple[int, float]] = field(default_factory=dict)
    _problem: str | None = None
    _damaged: dict[tuple[str, Origin, int], int] = field(default_factory=dict)  # lsn, by source

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for via in await self._sources():
                try:
                    await self._follow_from(via)
                except CutAway as error:
                    self._cut_away.add(via)
                    log.info("%s via %s: %s", self.idc, via, error)
                except (SourceDamaged, grpc.RpcError) as error:
                    log.debug("%s via %s: %s", self.idc, via, error)
                except Damaged as error:
                    self._alarm(f"the copy of {self.idc}'s log does not continue: {error}")
                except (ImError, TimeoutError) as error:
                    said = str(error) or f"{via} says nothing"
                    self._alarm(f"following {self.idc} via {via} stopped: {said}")
            await asyncio.sleep(_RETRY_S)

    def _alarm(self, sentence: str) -> None:
        if self._problem != sentence:
            log.error(sentence)
        self._problem = sentence

    @property
    def alarm(self) -> str | None:
        if self._problem is None:
            for via in self.channels:
                if damage := self._damage(via):
                    return damage
        return self._problem

    def _damage(self, via: str) -> str | None:
        """Of records that this source could not read and that are not here yet."""
        for (source, origin, partition), lsn in self._damaged.items():
            copy = self.store.held().get(origin)
            wanted = source == via and not self._above_seal(origin, partition, lsn)
            if wanted and (copy is None or copy.end(partition).lsn < lsn):
                return f"{via} cannot read lsn {lsn} of {origin} partition {partition} any more"
        return None

    async def _sources(self) -> list[str]:
        """The origin first; then the others, the longest copy first. Those that have cut away
        what comes next are asked again only once somebody else has brought it, and so are those
        that cannot read it, unless nobody else has anything."""
        damaged = [name for name in self.channels if self._damage(name)]
        unfit = self._cut_away | {*damaged}
        served = self.idc in self.channels and self.idc not in unfit
        if served and await self._reaches(self.idc):
            return [self.idc]
        others = [name for name in self.channels if name != self.idc]
        totals = await asyncio.gather(*(self._copied(name) for name in others))
        best = sorted(zip(totals, others, strict=True), reverse=True)
        found = [name for total, name in best if total > 0 and name not in unfit]
        if self._cut_away and not found:
            cut, self._cut_away = sorted(self._cut_away), set()
            if self.missed is not None:
                self.missed(
                    f"{' and '.join(cut)} no longer have the records of {self.idc} "
                    "that come next here"
                )
        # Other partitions of a damaged source go on meanwhile.
        return found or damaged

    async def _reaches(self, name: str) -> bool:
        try:
            stub = rpc.LogsStub(self.channels[name])
            await stub.Ends(peer.EndsRequest(), timeout=1.0)
        except (grpc.RpcError, TimeoutError):
            return False
        return True

    async def _copied(self, name: str) -> int:
        """How many records of this IDC's logs another one has that are missing here."""
        try:
            reply = await rpc.LogsStub(self.channels[name]).Ends(peer.EndsRequest(), timeout=1.0)
        except (grpc.RpcError, TimeoutError):
            return 0
        missing = 0
        for row in reply.origins:
            origin = origin_of(row.origin)
            if origin.idc == self.idc:
                mine = self.store.held().get(origin)
                missing += sum(
                    max(0, end.lsn - (mine.end(end.partition).lsn if mine else 0))
                    for end in row.held
                )
        return missing

    async def _follow_from(self, via: str) -> None:
        """Follow every incarnation that the source has a log of; returns when any stream ends."""
        stub = rpc.LogsStub(self.channels[via])
        reply = await stub.Ends(peer.EndsRequest(), timeout=2.0)
        own = self.store.own()
        origins = [
            origin
            for row in reply.origins
            if (origin := origin_of(row.origin)).idc == self.idc
            and (own is None or origin != own.origin)
        ]
        for row in reply.origins:
            for end in [*row.held, *row.announced]:
                self.progress.announce(origin_of(row.origin), end.partition, end.lsn)
        if not origins:
            await asyncio.sleep(1.0)  # not started yet, or never anything but its current log
            return
        tasks = [asyncio.ensure_future(self._tail(stub, via, origin)) for origin in origins]
        if via != self.idc:
            # A relay is a stopgap: ask for the origin itself again soon.
            tasks.append(asyncio.ensure_future(asyncio.sleep(_QUIET_S)))
        else:
            tasks.append(asyncio.ensure_future(self._new_incarnation(stub, set(origins))))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _new_incarnation(self, stub: rpc.LogsAsyncStub, known: set[Origin]) -> None:
        while True:
            await asyncio.sleep(1.0)
            reply = await stub.Ends(peer.EndsRequest(), timeout=2.0)
            found = {origin_of(r.origin) for r in reply.origins if r.origin.idc == self.idc}
            if found - known:
                return

    async def _tail(self, stub: rpc.LogsAsyncStub, via: str, origin: Origin) -> None:
        copy = await self.store.open_copy(origin)
        if via == self.idc and self.store.filled_from_outside:
            await self._attend(stub, via, origin, copy)
        else:
            async with aclosing(self._batches(stub, via, origin, copy)) as batches:
                async for _ in batches:
                    pass

    async def _batches(
        self,
        stub: rpc.LogsAsyncStub,
        via: str,
        origin: Origin,
        copy: Log,
        ends_only: bool = False,
    ) -> AsyncGenerator[peer.TailBatch, None]:
        """Each one after it was taken; what came while one was written comes together."""
        call = stub.Tail(self._requests(copy, origin, ends_only))

        async def read() -> peer.TailBatch:
            async with asyncio.timeout(_QUIET_S):  # not wait_for: that is a task a batch
                batch = await call.read()
            if not isinstance(batch, peer.TailBatch):
                raise TimeoutError(f"{via} ended the stream of {origin}")
            self.source, self.heard_at = via, self.clock.now()
            return batch

        incoming = Incoming(read)
        try:
            while True:
                batch = await incoming.next()
                await self.take(via, copy, origin, batch)
                if batch.truncated_below:
                    raise CutAway(f"{via} has cut away what comes next here of {origin}")
                if batch.records:
                    self._cut_away.discard(self.idc)
                yield batch
        finally:
            incoming.close()
            call.cancel()

    async def _attend(self, stub: rpc.LogsAsyncStub, via: str, origin: Origin, copy: Log) -> None:
        """Something else fills the copy: look whether it does."""
        gaps = Gaps(self.gap_s)
        async with aclosing(self._batches(stub, via, origin, copy, ends_only=True)) as batches:
            async for batch in batches:
                held = {end.partition: copy.end(end.partition).lsn for end in batch.ends}
                ends = {end.partition: self._wanted(origin, end) for end in batch.ends}
                stay, moved = gaps.look(held, ends, self.clock.now())
                if moved:
                    self._problem = None
                if stay:
                    log.info("%s: fetching what is missing of partitions %s", origin, sorted(stay))
                    await self._fill(stub, via, origin, copy, stay)

    def _wanted(self, origin: Origin, end: peer.PartitionEnd) -> int:
        seal = self.seal_of(origin, end.partition)
        return end.lsn if seal is None else min(end.lsn, seal)

    async def _fill(
        self, stub: rpc.LogsAsyncStub, via: str, origin: Origin, copy: Log, upto: dict[int, int]
    ) -> None:
        """Fetch until every one of these partitions holds that lsn."""
        async with aclosing(self._batches(stub, via, origin, copy)) as batches:
            async for _ in batches:
                if all(copy.end(partition).lsn >= lsn for partition, lsn in upto.items()):
                    return

    def _note_damage(self, via: str, origin: Origin, batch: peer.TailBatch) -> None:
        for at in batch.damaged:
            key = (via, origin, at.partition)
            if self._damaged.get(key) != at.lsn:
                log.error("%s cannot read lsn %d of %s partition %d", via, at.lsn, *key[1:])
            self._damaged[key] = at.lsn
        if batch.damaged:
            raise SourceDamaged(f"{via} cannot read what comes next here of {origin}")

    async def take(self, via: str, copy: Log, origin: Origin, batch: peer.TailBatch) -> None:
        """What a source has sent: durable when it returns. Raises Damaged, SourceDamaged, and what
        the copy does."""
        ends = self._ends.setdefault(origin, {})
        named = {end.partition for end in (*batch.ends, *batch.damaged)}
        if unknown := sorted(number for number in named if number >= self.partitions):
            raise Damaged(f"{via} names partition {unknown[0]}; there are {self.partitions}")
        for end in batch.ends:
            ends[end.partition] = max(end.lsn, ends.get(end.partition, 0))
            self.progress.announce(origin, end.partition, end.lsn)
            held = copy.end(end.partition).lsn
            sealed = self.seal_of(origin, end.partition) is not None
            told = via == self.idc and not sealed
            if told and self._lost_its_end(origin, end, held):
                self._alarm(
                    f"{origin} partition {end.partition} ends at {end.lsn} at its origin, "
                    f"below the {held} held here"
                )
        began_ns = wall_ns()
        records = [unpack(item.record) for item in batch.records]
        records = [r for r in records if not self._above_seal(origin, r.partition, r.lsn)]
        if records:
            await copy.append_copy(records)
            self._problem = None
            if self.tracing is not None:
                self._follow(self.tracing, via, origin, records, began_ns)
        self._note_damage(via, origin, batch)

    def _follow(
        self, tracing: Tracing, via: str, origin: Origin, records: list[Record], began_ns: int
    ) -> None:
        for record in records:
            trace = of_payload(record.payload)
            if trace is not None:
                tracing.hop(
                    "mirror.copy", trace, began_ns, partition=record.partition,
                    origin=str(origin), lsn=record.lsn, via=via,
                )  # fmt: skip

    def _lost_its_end(self, origin: Origin, end: peer.PartitionEnd, held: int) -> bool:
        """Whether the origin ends below what is held of it here. What something else copies may be
        here a moment before its origin knows that it is written: then it is given time to."""
        key = (origin, end.partition)
        if end.lsn >= held:
            self._ahead.pop(key, None)
            return False
        if not self.store.filled_from_outside:
            return True
        at, since = self._ahead.get(key, (0, 0.0))
        if end.lsn >= at:
            self._ahead[key] = held, self.clock.now()
            return False
        return self.clock.now() - since > _AHEAD_S

    def _above_seal(self, origin: Origin, partition: int, lsn: int) -> bool:
        seal = self.seal_of(origin, partition)
        return seal is not None and lsn > seal

    async def _requests(
        self, copy: Log, origin: Origin, ends_only: bool = False
    ) -> AsyncIterator[peer.TailRequest]:
        """First what is held, then what is held and applied whenever it has changed. Paced: a
        report a batch would cost as much as the batch, and only ``replicated`` waits for it."""
        reported: tuple[list[int], dict[int, int]] | None = None
        while True:
            held = [copy.end(partition).lsn for partition in range(self.partitions)]
            applied = self.applied(origin)
            if (held, applied) != reported:
                request = self._request(copy, origin, applied)
                request.ends_only = ends_only
                yield request
                reported = (held, dict(applied))
            await asyncio.sleep(_REPORT_S)

    def _request(self, copy: Log, origin: Origin, applied: dict[int, int]) -> peer.TailRequest:
        request = peer.TailRequest(reader_idc=self.own, origin=origin_pb(origin))
        request.applied.extend(
            peer.PartitionEnd(partition=partition, lsn=lsn) for partition, lsn in applied.items()
        )
        for partition in range(self.partitions):
            end = copy.end(partition)
            request.held.add(partition=partition, lsn=end.lsn, chain=end.chain)
        return request

    def behind(self) -> int:
        """Records known to exist at the origin that are not held here."""
        missing = 0
        for origin, ends in self._ends.items():
            copy = self.store.held().get(origin)
            if copy is not None:
                missing += sum(max(0, lsn - copy.end(p).lsn) for p, lsn in ends.items())
        return missing
