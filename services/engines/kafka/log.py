"""One origin's log on Kafka: the own one, or the durable copy of another's.

    topic 0    what the origin wrote: its own topic, or MirrorMaker's copy of it
    topic 1    the relay: what this IDC fetched itself (``append_copy``)

A Kafka partition has the number of ours, a Kafka record is one packed record, and which records
count is ``union``'s rule. Offsets never leave this package.

*Fencing (rule 5), without transactions.* One idempotent producer, acks=all, one batch in flight for
a partition; what arrives meanwhile gathers for the next (group commit). A batch is acked if, and
only if, its base offset is the one just behind the last record that this log knows: its own
previous batch, or the end that it read when it was (re)opened. Then nobody wrote in between, so
whoever reads the topic takes exactly what this log took up to there, and then this batch: its lsns
are the next ones, its chain continues, and its epoch is not below any before it. A reader therefore
never drops an acked record.

Any other result (a gap, a deadline, a lost connection, an error that is no refusal) is
OutcomeUnknown for this batch and all behind it. Its producer is discarded, and nothing is taken
until ``reopen``, which reads to the end with the same rule and goes on with a new producer. The
lost batch may still land. Before the next epoch's marker: then that marker does not stand where it
must, so it is not acked, and the caller opens again. Behind the marker: then its epoch is below the
highest that every reader has seen, so it is dropped by all; the next batch meets a gap, and the
caller opens again. Either way nothing that was acked is dropped. Two sequencers of one partition
fence each other alike: the one whose marker stands first wins, and the other's next batch does not
stand where it must.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from imcore.errors import Damaged, ImError, OutcomeUnknown, StaleWriter, Unavailable
from imcore.words import Origin
from services.engines.callbacks import Subscribers, guarded
from services.engines.copying import by_partition, new_records
from services.engines.kafka.batches import BATCH_BYTES, Fetched
from services.engines.kafka.cluster import At, Cluster, Gone, NoTopic
from services.engines.kafka.index import STEP_BYTES, Hint, Index, beginning
from services.engines.kafka.tail import Tail
from services.engines.kafka.union import Cuts, Source, Union
from services.engines.kafka.writer import Writer
from services.engines.recent import Recent
from services.engines.records import EMPTY_END, pack, records_after
from services.ports import LogEnd, Record

log = logging.getLogger("im.log")

OWN, RELAY = 0, 1
READ_BYTES = 512 * 1024
_PLACES = 8  # of readers that read on, remembered
_SWITCHES_MAX = 4  # times from one topic to the other with nothing taken in between
Done = Callable[[Sequence[Record] | Exception], None]


class _Append(NamedTuple):
    records: list[Record]
    packed: list[bytes]
    done: Done


class _Place(NamedTuple):
    """Where somebody who reads what is not in memory goes on."""

    hint: Hint
    read: list[Record]  # from there back: read already, and not wanted yet


class Kept(NamedTuple):
    """What is written down of a partition: where it starts, and what does not count in it."""

    hints: list[Hint]
    cuts: Cuts


Keep = Callable[[int, Kept], Awaitable[None]]


class _Part:
    def __init__(self, number: int, kept: Kept, step_bytes: int) -> None:
        first = kept.hints[0] if kept.hints else beginning(2)
        index = Index(first, step_bytes)
        for hint in kept.hints[1:]:
            index.push(hint)
        self.number = number
        self.step_bytes = step_bytes
        self.union = Union(number, index.last, kept.cuts, index)
        self.tail = index.last.end  # given out
        self.recent = Recent()
        self.waiting: list[_Append] = []
        self.flying = False
        self.failed: Exception | None = None
        self.problem = ""  # the last failure that was logged
        self.changing = asyncio.Lock()  # copies are written, cut and begun anew one at a time
        self.places: OrderedDict[int, _Place] = OrderedDict()  # by the next lsn

    @property
    def first(self) -> int:
        return self.union.index.first.end.lsn + 1


class _Following:
    """Reads one topic of one partition on for the log (services.engines.kafka.tail)."""

    def __init__(self, owner: KafkaLog, part: _Part, source: int) -> None:
        self._owner = owner
        self._part = part
        self._source = source

    @property
    def _at(self) -> Source:
        return self._part.union.sources[self._source]

    @property
    def offset(self) -> int:
        return self._at.offset

    def took(self, fetched: Fetched) -> None:
        self._owner.offer(self._part, self._source, fetched)

    async def out_of_range(self) -> None:
        await self._owner.into_range(self._part)


class KafkaLog:
    """Log of services.ports. ``keep`` writes down where a partition starts and what was cut."""

    def __init__(
        self,
        origin: Origin,
        topics: tuple[str, str],
        partitions: int,
        cluster: Cluster,
        tail: Tail,
        kept: dict[int, Kept],
        keep: Keep,
        make_relay: Callable[[], Awaitable[None]],
        step_bytes: int = STEP_BYTES,
    ) -> None:
        self.origin = origin
        self.partitions = partitions
        self.appendable = False
        self._topics = topics
        self._cluster = cluster
        self._tail = tail
        self._keep = keep
        self._make_relay = make_relay
        nothing = Kept([], Cuts())
        self._parts = [_Part(n, kept.get(n, nothing), step_bytes) for n in range(partitions)]
        self._writers = [Writer(cluster, topic) for topic in topics]
        self._relay_made = False
        self.lost = False  # its end is gone: found when it was opened
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._subscribers = Subscribers()

    # --------------------------------------------------------------------------- opening

    async def open(self) -> None:
        """Read to the end of what there is."""
        await asyncio.gather(*(self._catch_up(part) for part in self._parts))
        for part in self._parts:
            part.tail = part.union.end

    def follow(self) -> None:
        """A copy grows whenever its topics do."""
        for part in self._parts:
            for source, topic in enumerate(self._topics):
                self._tail.follow(At(topic, part.number), _Following(self, part, source))

    def _unfollow(self) -> None:
        for part in self._parts:
            for topic in self._topics:
                self._tail.leave(At(topic, part.number))

    async def become_own(self) -> None:
        """Nobody else writes it from now on: what is there is read once, and then not any more."""
        self._unfollow()
        await self.open()
        self.appendable = True

    def become_copy(self) -> None:
        self.appendable = False
        self.follow()

    async def _catch_up(self, part: _Part) -> None:
        """Until every topic has been read to the end that it had. Raises Unavailable."""
        bounds = [await self._bounds(part, source) for source in (OWN, RELAY)]
        self._into_range(part, bounds)
        while True:
            behind = [
                source
                for source, (_, end) in enumerate(bounds)
                if part.union.sources[source].offset < end
            ]
            if not behind:
                return
            for source in behind:
                at = At(self._topics[source], part.number)
                offset = part.union.sources[source].offset
                self.offer(part, source, await self._cluster.fetch_one(at, offset, READ_BYTES))

    async def into_range(self, part: _Part) -> None:
        """A topic does not hold the offset that comes next."""
        self._into_range(part, [await self._bounds(part, source) for source in (OWN, RELAY)])

    def _into_range(self, part: _Part, bounds: Sequence[tuple[int, int]]) -> None:
        if any(at.offset > end for at, (_, end) in zip(part.union.sources, bounds, strict=True)):
            self._back_to(part, [end for _, end in bounds])
        for at, (start, _) in zip(part.union.sources, bounds, strict=True):
            if at.offset < start:  # it was cut further than is known here
                at.offset, at.hole = start, None

    def _back_to(self, part: _Part, ends: list[int]) -> None:
        """A topic ends below what was read of it: what was acked by its broker is gone, as when a
        machine crashes that had not synced it. The own log is then over (rule 6): nobody could read
        past the hole. A copy begins again at the last hint that is still there."""
        union = part.union
        sentence = (
            f"partition {part.number} of {self.origin} has lost its end: its topics end at offsets "
            f"{ends}, below {[at.offset for at in union.sources]}, to which they were read"
        )
        log.error(sentence)
        self.lost = True
        if self.appendable:
            raise Damaged(f"{sentence}; restart this IDC, which then takes the next incarnation")
        hint = union.index.whole(ends)
        index = union.index
        if hint is None:
            hint = beginning(len(ends))
            index = Index(hint, part.step_bytes)
        index.cut_above(hint.end.lsn)
        self._begin_anew(part, hint, union.cuts, index)

    def offer(self, part: _Part, source: int, fetched: Fetched) -> None:
        before = part.union.problem
        taken = part.union.offer(source, fetched.records, fetched.next)
        if part.union.problem != before:
            log.warning("%s partition %d: %s", self.origin, part.number, part.union.problem)
        if taken:
            part.recent.add(taken)
            if not self.appendable:
                part.tail = part.union.end
            self._subscribers.tell()

    # ----------------------------------------------------------------------------- state

    def end(self, partition: int) -> LogEnd:
        return self._parts[partition].union.end

    def first_lsn(self, partition: int) -> int:
        return self._parts[partition].first

    def stored_bytes(self, partition: int, above_lsn: int = 0) -> int:
        union = self._parts[partition].union
        if above_lsn >= union.end.lsn:
            return 0
        return union.size - union.index.before(above_lsn + 1).size

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._subscribers.add(callback)

    def size(self, partition: int) -> int:
        """Bytes of all records that this partition ever took."""
        return self._parts[partition].union.size

    def kept(self, partition: int) -> Kept:
        """What a later opening should know."""
        union = self._parts[partition].union
        return Kept([*union.index.kept(), union.here()], union.cuts)

    # ---------------------------------------------------------------------------- append

    def append(self, partition: int, epoch: int, payloads: Sequence[bytes], done: Done) -> int:
        if not self.appendable:
            raise ValueError(f"the log of {self.origin} is a copy here: only append_copy writes it")
        if not payloads:
            raise ValueError("an append needs at least one payload")
        part = self._parts[partition]
        first = part.tail.lsn + 1
        problem = self._refusal(part)
        if problem is None and epoch < part.tail.epoch:
            problem = StaleWriter(
                f"partition {partition} of {self.origin} is in epoch {part.tail.epoch}, not {epoch}"
            )
        if problem is not None:
            self._loop.call_soon(guarded, done, problem)
            return first
        records = records_after(part.tail, partition, epoch, payloads)
        part.waiting.append(_Append(records, [pack(record) for record in records], done))
        part.tail = LogEnd(records[-1].lsn, records[-1].chain, epoch)
        if not part.flying:
            part.flying = True
            self._loop.call_soon(self._start_commit, part)
        return first

    def _refusal(self, part: _Part) -> Exception | None:
        return Unavailable(f"the log of {self.origin} is closed") if self._closed else part.failed

    def _start_commit(self, part: _Part) -> None:
        task = asyncio.ensure_future(self._commit(part))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _commit(self, part: _Part) -> None:
        """Write what waits, batch by batch, until nothing does."""
        while part.waiting and part.failed is None:
            group = _take_batch(part.waiting)
            packed = [data for item in group for data in item.packed]
            failure = await self._write(part, packed)
            if failure is not None:
                self._fail(part, failure, group)
                break
            part.problem = ""
            size = sum(map(len, packed))
            records = [record for item in group for record in item.records]
            part.union.append(records, size, part.union.sources[OWN].offset)
            part.recent.add(records)
            for item in group:
                guarded(item.done, item.records)
            self._subscribers.tell()
        part.flying = False

    async def _write(self, part: _Part, packed: list[bytes]) -> Exception | None:
        expected = part.union.sources[OWN].offset
        try:
            offset = await self._writers[OWN].write(part.number, packed)
        except ImError as error:
            return error
        except asyncio.CancelledError:
            return OutcomeUnknown(f"the log of {self.origin} was closed while it wrote")
        except Exception as error:  # whatever it is, it may have been written
            log.exception("partition %d of %s failed", part.number, self.origin)
            return OutcomeUnknown(str(error))
        if offset != expected:
            self._writers[OWN].discard(part.number)
            return OutcomeUnknown(
                f"partition {part.number} of {self.origin}: somebody else has written to its topic "
                f"(offset {offset}, expected {expected})"
            )
        return None

    def _fail(self, part: _Part, failure: Exception, group: list[_Append]) -> None:
        if str(failure) != part.problem:  # once, however often it is tried again
            part.problem = str(failure)
            log.error("partition %d of %s failed: %s", part.number, self.origin, failure)
        part.failed = failure
        told = [*group, *part.waiting]
        part.waiting.clear()
        for item in told:
            guarded(item.done, failure)

    async def reopen(self, partition: int) -> LogEnd:
        part = self._parts[partition]
        if part.failed is not None and not self._closed:
            self._writers[OWN].discard(partition)
            await self._catch_up(part)
            part.tail = part.union.end
            part.failed = None
        return part.union.end

    # ---------------------------------------------------------------------------- copies

    async def append_copy(self, records: Sequence[Record]) -> None:
        parts = by_partition(records, self.partitions, self.origin)
        results = await asyncio.gather(
            *(self._copy(self._parts[number], new) for number, new in parts.items()),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _copy(self, part: _Part, records: list[Record]) -> None:
        async with part.changing:
            new = new_records(records, part.union.end, part.recent, self.origin)
            while new:
                new = await self._relay(part, new)

    async def _relay(self, part: _Part, records: list[Record]) -> list[Record]:
        """Write one batch of them; returns the rest."""
        if self._closed:
            raise Unavailable(f"the log of {self.origin} is closed")
        if not self._relay_made:
            await self._make_relay()
            self._relay_made = True
        count, size = 0, 0
        packed: list[bytes] = []
        while count < len(records) and (not packed or size < BATCH_BYTES):
            packed.append(pack(records[count]))
            size += len(packed[-1])
            count += 1
        offset = await self._writers[RELAY].write(part.number, packed)
        source = part.union.sources[RELAY]
        if source.offset == offset:
            values = [(offset + n, data) for n, data in enumerate(packed)]
            self.offer(part, RELAY, Fetched(values, offset + count, 0, 0))
        last = records[count - 1].lsn
        if part.union.end.lsn < last:
            await self._catch_up(part)  # somebody else has written there: in the topic's order
        if part.union.end.lsn < last:
            raise Damaged(
                f"record {last} of partition {part.number} of {self.origin} was written and does "
                f"not continue the copy, which ends at {part.union.end.lsn}"
            )
        return records[count:]

    async def restart_at(self, partition: int, end: LogEnd) -> None:
        if self.appendable:
            raise ValueError(f"the own log of {self.origin} is never cut")
        part = self._parts[partition]
        async with part.changing:
            starts = [await self._bounds(part, source) for source in (OWN, RELAY)]
            # Of the relay, nothing that is there counts; of the other, what goes on behind the end.
            hint = Hint(end, (starts[OWN][0], starts[RELAY][1]), OWN, 0)
            cuts = part.union.cuts.from_lsn(end.lsn)
            await self._keep(partition, Kept([hint], cuts))
            self._begin_anew(part, hint, cuts, Index(hint, part.step_bytes))
            part.failed = None

    async def cut_above(self, partition: int, lsn: int) -> None:
        if self.appendable:
            raise ValueError(f"the own log of {self.origin} is never cut")
        part = self._parts[partition]
        async with part.changing:
            if lsn >= part.union.end.lsn:
                return
            end = await self._end_at(part, lsn)
            _, relay_end = await self._bounds(part, RELAY)
            union = part.union
            cuts = union.cuts.cut(lsn, relay_end)
            union.index.cut_above(lsn)
            last = union.index.last
            hint = Hint(end, last.offsets, last.source, last.size)
            await self._keep(partition, Kept([*union.index.kept(), hint], cuts))
            self._begin_anew(part, hint, cuts, union.index)

    def _begin_anew(self, part: _Part, hint: Hint, cuts: Cuts, index: Index) -> None:
        part.union = Union(part.number, hint, cuts, index)
        part.recent.clear()
        part.places.clear()
        part.tail = hint.end

    async def _end_at(self, part: _Part, lsn: int) -> LogEnd:
        first = part.union.index.first.end
        if lsn <= first.lsn:
            return first if lsn == first.lsn else EMPTY_END
        (record,) = (await self.read(part.number, lsn, 1))[:1]
        return LogEnd(record.lsn, record.chain, record.epoch)

    async def _bounds(self, part: _Part, source: int) -> tuple[int, int]:
        try:
            return await self._cluster.bounds(At(self._topics[source], part.number))
        except NoTopic:
            return 0, 0

    # ----------------------------------------------------------------------------- reads

    async def read(self, partition: int, from_lsn: int, limit_bytes: int) -> list[Record]:
        part = self._parts[partition]
        if from_lsn < part.first:
            raise LookupError(
                f"lsn {from_lsn} of partition {partition} of {self.origin} is truncated away; "
                f"the log starts at {part.first}"
            )
        end = part.union.end.lsn
        if from_lsn > end:
            return []
        recent = part.recent.read(from_lsn, end, limit_bytes)
        if recent:
            return recent
        try:
            async with asyncio.timeout(2 * self._cluster.settings.deadline_s):
                return await self._read_topics(part, from_lsn, end, limit_bytes)
        except TimeoutError as error:
            raise Unavailable(f"{self._cluster} is too slow to read {self.origin}") from error

    async def _read_topics(
        self, part: _Part, from_lsn: int, end: int, limit_bytes: int
    ) -> list[Record]:
        union = part.union
        place = part.places.pop(from_lsn, None) or _Place(union.index.before(from_lsn), [])
        scratch = Union(part.number, place.hint, union.cuts, Index(place.hint, 1 << 62))
        found, source, idle = list(place.read), place.hint.source, 0
        size = sum(len(record.payload) for record in found)
        while scratch.end.lsn < end and (not found or size < limit_bytes):
            offset = scratch.sources[source].offset
            over, taken = await self._page(part, scratch, source)
            for record in taken:
                if from_lsn <= record.lsn <= end:
                    found.append(record)
                    size += len(record.payload)
            if taken:
                idle = 0
            elif over or scratch.sources[source].offset == offset:
                # Pages of what is older may be many, and say nothing of the other topic.
                source, idle = 1 - source, idle + 1
                if idle > _SWITCHES_MAX:
                    break
        if not found and from_lsn <= part.union.end.lsn:
            if from_lsn < part.first:
                raise LookupError(f"lsn {from_lsn} of {self.origin} is truncated away")
            raise Damaged(
                f"lsn {from_lsn} of partition {part.number} of {self.origin} is in no topic any "
                f"more, below the end at {end}"
            )
        wanted = _within(found, limit_bytes)
        if wanted and part.union is union and scratch.end.lsn <= end:
            rest = found[len(wanted) :]
            part.places[wanted[-1].lsn + 1] = _Place(scratch.here(source), rest)
            while len(part.places) > _PLACES:
                part.places.popitem(last=False)
        return wanted

    async def _page(self, part: _Part, scratch: Union, source: int) -> tuple[bool, list[Record]]:
        """Whether this topic has nothing more for now, and what was taken."""
        at = scratch.sources[source]
        try:
            fetched = await self._cluster.fetch_one(
                At(self._topics[source], part.number), at.offset, READ_BYTES
            )
        except (NoTopic, Gone):
            return True, []
        taken = scratch.offer(source, fetched.records, fetched.next)
        if at.hole is not None:
            at.offset, at.hole = at.hole[0], None  # it comes next once the other has filled it
            return True, taken
        return fetched.next >= fetched.end, taken

    # ------------------------------------------------------------------- truncate, close

    async def truncate_below(self, partition: int, lsn: int) -> None:
        part = self._parts[partition]
        async with part.changing:
            union = part.union  # of now: it may have been cut while this waited
            if lsn > union.end.lsn:
                hint = union.here()
                index = Index(hint, part.step_bytes)
            else:
                hint, index = union.index.before(lsn), union.index
            if hint.end.lsn <= union.index.first.end.lsn:
                return
            # First it is written down where the log starts, then the broker forgets what is below.
            kept = [it for it in index.kept() if it.end.lsn > hint.end.lsn]
            await self._keep(partition, Kept([hint, *kept], union.cuts))
            index.cut_below(hint.end.lsn + 1)
            union.index = index
            part.places.clear()
            for topic, offset in zip(self._topics, hint.offsets, strict=True):
                if offset > 0:
                    await self._cluster.delete_below(At(topic, partition), offset)

    async def close(self) -> None:
        """Writes what was taken, then takes nothing more."""
        self._closed = True
        self._unfollow()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * self._cluster.settings.deadline_s)
        for task in list(self._tasks):
            task.cancel()
        for writer in self._writers:
            await writer.close()


def _take_batch(waiting: list[_Append]) -> list[_Append]:
    """As many as one batch holds, at least one."""
    size, count = 0, 0
    for item in waiting:
        size += sum(map(len, item.packed))
        if count and size > BATCH_BYTES:
            break
        count += 1
    group = waiting[:count]
    del waiting[:count]
    return group


def _within(records: list[Record], limit_bytes: int) -> list[Record]:
    size = 0
    for count, record in enumerate(records):
        if count and size >= limit_bytes:
            return records[:count]
        size += len(record.payload)
    return records
