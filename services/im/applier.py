"""Drives the fold of one partition: reads every origin's log, commits, then tells.

Order of steps, and the invariant it keeps: a record is folded only from a durable log (rule 1);
state and checkpoint are one atomic batch, conditional on the applier's epoch (rule 15); nothing is
told or shown (pushed, signalled, counted as applied, seen in memory) before its batch is committed.
So a crash anywhere repeats at most what was never told, and a paused applier that wakes up late can
overwrite nothing.

A commit may end without anybody knowing whether it was made. Then the partition is opened again
before anything else, and its checkpoint tells: what was made is shown and told as if nothing had
happened, what was not is folded again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from imcore.convert import origin_of, origin_pb
from imcore.errors import Damaged, ImError, StaleWriter
from imcore.hlc import Hlc
from imcore.levels import LEVEL, level_of
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin, Vector
from services.im.cache import ConversationCache
from services.im.conversation import Conversation
from services.im.fold import Effects, Fold, Rows, Taken, conversations_of, fits, needs
from services.im.reader import Position, Verdict
from services.ports import BATCH_BYTES_MAX, Batch, Kv, Log, LogStore
from services.tracing.spans import Tracing, wall_ns

log = logging.getLogger("im.applier")

_READ_BYTES = 256 * 1024
_RETRY_S = 0.2
_SLOW_S, _SMALL, _REST_MAX_S = 0.003, 256, 0.05
_MOST = 1 << 20  # records of a batch; fewer while these make too many rows

Told = Callable[[Origin, Effects], None]
Seals = dict[Origin, int]  # of one partition: the last lsn that counts


class Base(Protocol):
    """The snapshot that a partition is folded again from when its logs no longer begin at their
    start: not above any seal that can still come (services.retention)."""

    async def checkpoint(self, partition: int) -> bytes | None:
        """What the snapshot has of the partition, checked; None: there is no snapshot. Raises
        Damaged."""
        ...

    async def load(self, partition: int, applier_epoch: int, checkpoint: bytes) -> None:
        """Put its rows, and this checkpoint, in the place of the partition's."""
        ...


@dataclass(slots=True)
class _Flying:
    """A batch on its way into the KV: what becomes true once it is committed."""

    origin: Origin
    position: Position
    closed: int
    newest: int  # HLC of its last op
    timeline: int
    again: bool  # all of it was told before
    conversations: dict[str, Conversation]
    effects: Effects


class Applier:
    def __init__(
        self,
        partition: int,
        kv: Kv,
        logs: LogStore,
        conversations: ConversationCache,
        hlc: Hlc,
        told: Told,
        timeline_members_max: int = 500,
    ) -> None:
        self.partition = partition
        self._kv = kv
        self._logs = logs
        self._conversations = conversations
        self._hlc = hlc
        self._told = told
        self._fold = Fold(partition, timeline_members_max)
        self._epoch = 0
        self._positions: dict[Origin, Position] = {}
        self._seals: Seals = {}
        self._timeline = 0
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()  # one batch or one rebuild at a time
        self._spoiled = True  # not open, or a write is under way, or its outcome is not known
        self._flying: _Flying | None = None
        self._beginning = False  # a rebuild is under way, or has failed half way
        self._fenced: StaleWriter | None = None  # another applier has taken the partition over
        self._rest_s = 0.0  # before the next batch
        self._most = _MOST  # records of the next batch
        self.begun = 0  # how often it was folded again
        self._encoded: dict[Origin, tuple[bytes, int, bytes]] = {}  # chain, closed, their bytes
        self._told_to: Vector = {}  # while it is folded again: what was told before
        self._owed: list[tuple[Origin, Effects]] = []  # told once it is whole again
        self._owed_friends = Effects()  # the same; also of what was told before
        self._recalled_before: set[ClientKey] = set()  # by what was told before and is not again
        self.closed: dict[Origin, int] = {}
        self.newest: dict[Origin, int] = {}  # HLC of the last op folded
        self._skipped: dict[Origin, set[int]] = {}  # lsns of ops that cannot be stored
        self._above: dict[Origin, tuple[int, int]] = {}  # lsn and level of an op that waits
        self._problem: str | None = None
        self.tracing: Tracing | None = None
        self.base: Base | None = None
        self.begins_again: Callable[[], None] = lambda: None  # what was known is not any more

    # -------------------------------------------------------------------------- positions

    def applied(self) -> Vector:
        return {origin: position.lsn for origin, position in self._positions.items()}

    def lsn(self, origin: Origin) -> int:
        position = self._positions.get(origin)
        return position.lsn if position else 0

    def reach(self) -> Vector:
        """What rows may show by now: never less than what is folded, be it that a batch has not
        come back yet, or that the partition is being folded again."""
        found = {o: max(lsn, self.lsn(o)) for o, lsn in self._told_to.items()}
        found = self.applied() | found
        if self._flying is not None:
            found[self._flying.origin] = max(
                self._flying.position.lsn, found.get(self._flying.origin, 0)
            )
        return found

    @property
    def timeline(self) -> int:
        return self._timeline

    async def open(self) -> None:
        """Take the partition over and continue from its checkpoint."""
        async with self._turn:
            self._spoiled = True
            await self._sound()

    def _load(self, row: oplog.CheckpointRow) -> None:
        self._positions = _positions_of(row)
        self.closed = {origin_of(c.origin): c.hlc for c in row.closed}
        # It only rises: clients hold tokens with what it was.
        self._timeline = max(row.timeline, self._timeline)
        self._hlc.observe(row.hlc)

    def _checkpoint(self, flying: _Flying) -> bytes:
        row = oplog.CheckpointRow(
            applier_epoch=self._epoch, hlc=self._hlc.last, timeline=flying.timeline
        )
        parts = [
            self._part(origin, at, self.closed.get(origin, 0))
            for origin, at in self._positions.items()
            if origin != flying.origin
        ]
        parts.append(self._part(flying.origin, flying.position, flying.closed))
        return row.SerializeToString() + b"".join(parts)

    def _part(self, origin: Origin, at: Position, closed: int) -> bytes:
        """Of one origin. A batch moves one origin, so the others' bytes are kept: messages of
        Protobuf that stand one behind the other are read as one."""
        kept = self._encoded.get(origin)
        if kept is None or kept[0] != at.chain or kept[1] != closed:
            row = oplog.CheckpointRow()
            row.applied.add(origin=origin_pb(origin), lsn=at.lsn, chain=at.chain, epoch=at.epoch)
            if closed:
                row.closed.add(origin=origin_pb(origin), hlc=closed)
            kept = self._encoded[origin] = (at.chain, closed, row.SerializeToString())
        return kept[2]

    # ------------------------------------------------------------------------------- loop

    def wake(self) -> None:
        self._wake.set()

    def wake_if_behind(self, origin: Origin, source: Log) -> None:
        """This log has grown, perhaps in other partitions only: to drain for nothing costs as much
        as a quarter of a message, and there are as many partitions as appliers. For the same reason
        the other logs are not looked at."""
        if self._spoiled or source.end(self.partition).lsn > self.lsn(origin):
            self._wake.set()

    def _behind(self) -> list[tuple[Origin, Log]]:
        """The logs with durable records that are not folded, and can be."""
        return [
            (origin, source)
            for origin, source in self._logs.held().items()
            if source.end(self.partition).lsn > self.lsn(origin) and not self._waits(origin)
        ]

    def _waits(self, origin: Origin) -> bool:
        """For a newer program: the next record of this log is above this one's level."""
        lsn, _ = self._above.get(origin, (0, 0))
        return lsn == self.lsn(origin) + 1 and lsn <= self._seals.get(origin, lsn)

    async def run(self) -> None:
        """Until cancelled, or fenced off by a newer applier (StaleWriter)."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.drain()
            except StaleWriter:
                raise
            except (ImError, LookupError, OSError) as error:
                self._failed(error)
                self._spoiled = True  # to open the partition again tells whether it is still there
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def _failed(self, error: Exception) -> None:
        sentence = f"partition {self.partition} cannot be applied for now: {error}"
        if sentence != self._problem:
            log.error(sentence)
        self._problem = sentence

    @property
    def alarm(self) -> str | None:
        return self._problem or self.above_level or self._left_out()

    @property
    def above_level(self) -> str | None:
        """What waits for a newer program, if anything does."""
        for origin, (lsn, level) in self._above.items():
            if self._waits(origin):
                return (
                    f"partition {self.partition} waits in front of lsn {lsn} of {origin}: "
                    f"a program of level {level} wrote it, and this one folds {LEVEL}; "
                    "start the newer one here"
                )
        return None

    def _left_out(self) -> str | None:
        count = sum(map(len, self._skipped.values()))
        if not count:
            return None
        return f"{count} records of partition {self.partition} cannot be stored and are left out"

    def _fitting(self, origin: Origin, taken: list[Taken]) -> list[Taken]:
        found = []
        for item in taken:
            if fits(item.op):
                found.append(item)
            elif item.record.lsn not in self._skipped.setdefault(origin, set()):
                self._skipped[origin].add(item.record.lsn)
                log.error(
                    "lsn %d of %s in partition %d is left out: its names are too long to be stored",
                    item.record.lsn,
                    origin,
                    self.partition,
                )
        return found

    async def _sound(self) -> None:
        """After a write whose outcome is not known: take the partition over again, which settles
        it, before anything else is folded, whoever asks for it. A take-over may fail half way too,
        so it is repeated until it succeeds. Raises StaleWriter when another applier has done it."""
        if self._fenced is not None:
            raise self._fenced
        if not self._spoiled:
            return
        self._epoch, stored = await self._kv.open_partition(self.partition)
        row = oplog.CheckpointRow.FromString(stored or b"")
        positions, flying = _positions_of(row), self._flying
        self._flying = None
        if flying is not None and positions == self._positions | {flying.origin: flying.position}:
            self._landed(flying)
        elif positions != self._positions:  # else the batch was not made, and memory is right
            self._conversations.clear()
            self._load(row)
        if self._beginning:
            await self._begin_again()
        self._spoiled = False

    async def drain(self) -> None:
        """Fold everything durable that is not folded yet."""
        async with self._turn:
            await self._sound()
        begun = self.begun
        more = True
        while more:
            more = False
            for origin, source in self._behind():
                async with self._turn:
                    await self._sound()
                    more |= await self._one_batch(origin, source)
                if self._rest_s:
                    await asyncio.sleep(self._rest_s)
        self._problem = None
        if self._conversations.withheld:
            await self._release(begun)

    async def _release(self, begun: int) -> None:
        """Everything is folded again. What came in meanwhile could not be pushed, since nobody
        could be told how far its conversation reaches: it is told now, or nobody would ever be."""
        async with self._turn:  # no batch may come in between
            if begun != self.begun or not self._conversations.withheld:
                return  # not all of it was folded after that beginning
            named = dict.fromkeys(name for _, effects in self._owed for name in effects.entries)
            conversations = await self._conversations.load_all(named)
            self._conversations.release()
            self._told_to.clear()
            owed, self._owed = self._owed, []
            friends, self._owed_friends = self._owed_friends, Effects()
            for origin, effects in owed:
                effects.keep_below(
                    {name: at.heads.get(origin, 0) for name, at in conversations.items()}
                )
            recalled = self._recalled_before.union(*(effects.recalled() for _, effects in owed))
            self._recalled_before = set()
            for origin, effects in owed:
                effects.leave_out(recalled)
                self._told(origin, effects)
            if friends.friends:
                self._told(next(iter(self._positions)), friends)

    async def _one_batch(self, origin: Origin, source: Log) -> bool:
        position = replace(self._positions.get(origin, Position()))
        end = min(source.end(self.partition).lsn, self._seals.get(origin, 1 << 63))
        again = position.lsn < self._told_to.get(origin, 0)
        if again:  # what was told before and what was not never share a batch
            end = min(end, self._told_to[origin])
        if end <= position.lsn:
            return False
        began_ns = wall_ns()
        records = await source.read(self.partition, position.lsn + 1, _READ_BYTES)
        taken: list[Taken] = []
        for record in records:
            if record.lsn > end or len(taken) == self._most:
                break
            verdict = position.judge(record)
            if verdict is Verdict.GAP:
                raise LookupError(
                    f"{origin} lsn {position.lsn + 1} is missing, {record.lsn} is next"
                )
            if verdict is Verdict.TAKE:
                op = oplog.Op.FromString(record.payload)
                if (level := level_of(op)) > LEVEL:
                    self._wait(origin, record.lsn, level)
                    break
                position.take(record)
                taken.append(Taken(record, op))
        if not taken:
            return False
        self._most = min(2 * self._most, _MOST)
        while True:
            flying, rows = await self._folded(origin, position, taken, again)
            batch = Batch(self.partition, self._epoch, b"", rows.puts, rows.deletes)
            if batch.size <= BATCH_BYTES_MAX or len(taken) == 1:
                break
            # A message is a row for each member of its group: one page of messages may be more than
            # a store takes at once.
            self._most = max(1, len(taken) * BATCH_BYTES_MAX // (batch.size + 1))
            del taken[self._most :]
            position = replace(self._positions.get(origin, Position()))
            for item in taken:
                position.take(item.record)
        self._flying, self._spoiled = flying, True
        batch.checkpoint = self._checkpoint(flying)
        began = asyncio.get_running_loop().time()
        try:
            await self._kv.commit(batch)
        except StaleWriter as error:
            self._fenced = error
            raise
        took = asyncio.get_running_loop().time() - began
        # A store at the end of a network costs much for a batch and little for a row in it. As long
        # a rest as the commit took halves the number of batches, and what comes in shares the next.
        small = len(taken) < _SMALL
        self._rest_s = min(took, _REST_MAX_S) if small and took > _SLOW_S else 0.0
        self._flying, self._spoiled = None, False
        if self.tracing is not None and not again:
            self._follow(self.tracing, origin, taken, began_ns)
        self._landed(flying)
        return True

    def _wait(self, origin: Origin, lsn: int, level: int) -> None:
        if self._above.get(origin) != (lsn, level):
            self._above[origin] = lsn, level
            log.error(self.above_level)

    def _follow(self, tracing: Tracing, origin: Origin, taken: list[Taken], began_ns: int) -> None:
        for item in taken:
            if item.op.HasField("trace"):
                tracing.hop(
                    "im.apply", item.op.trace, began_ns, partition=self.partition,
                    origin=str(origin), lsn=item.record.lsn,
                )  # fmt: skip

    def _landed(self, flying: _Flying) -> None:
        """It is committed: show it, then tell."""
        origin = flying.origin
        self._positions[origin] = flying.position
        if flying.closed:
            self.closed[origin] = flying.closed
        self.newest[origin] = flying.newest
        self._timeline = flying.timeline
        self._conversations.publish(flying.conversations)
        self._tell(origin, flying.effects, flying.again)
        self._conversations.trim()

    def _tell(self, origin: Origin, effects: Effects, again: bool) -> None:
        if not self._conversations.withheld:
            self._told(origin, effects)
            return
        self._told(origin, Effects(keys=effects.keys, routes=effects.routes, kicks=effects.kicks))
        for name, (before, after) in effects.friends.items():
            # Also when it was told before: without the rest it may have become something else.
            self._owed_friends.now_friends(name, before, after)
        if again:
            self._recalled_before |= effects.recalled()
        else:
            later = Effects(effects.entries, effects.audience, effects.cursors, left=effects.left)
            later.moved.update(effects.entries)  # by the time at which it is told
            self._owed.append((origin, later))

    async def _folded(
        self, origin: Origin, position: Position, taken: list[Taken], again: bool
    ) -> tuple[_Flying, Rows]:
        """Nothing that anybody sees has changed."""
        closed, newest = self.closed.get(origin, 0), taken[-1].op.hlc
        for item in taken:
            self._hlc.observe(item.op.hlc)
            if item.op.HasField("tick"):
                closed = max(item.op.hlc, closed)
        taken = self._fitting(origin, taken)
        ops = [item.op for item in taken]
        loaded = await self._conversations.load_all(conversations_of(ops))
        conversations = {name: loaded_.copy() for name, loaded_ in loaded.items()}
        wanted = sorted(needs(self.partition, ops))
        rows = Rows(dict(zip(wanted, await self._kv.get_many(wanted), strict=True)))
        timeline = self._timeline + 1
        effects = self._fold.batch(taken, origin, conversations, rows, timeline)
        return _Flying(
            origin, position, closed, newest, timeline, again, conversations, effects
        ), rows

    # ------------------------------------------------------------------------------ seals

    async def seal(self, seals: Seals) -> bool:
        """Ops of these origins above these lsns do not count. When some of them are folded
        already, the partition is thrown away and folded again without them; True then."""
        async with self._turn:
            self._seals.update(seals)
            if not self._epoch:  # not open yet: what is folded is looked at by whoever publishes it
                return False
            await self._sound()
            above = [o for o, lsn in seals.items() if self.lsn(o) > lsn]
            if not above:
                return False
            log.warning(
                "partition %d holds ops above the seals of %s: folding it again without them",
                self.partition,
                ", ".join(str(origin) for origin in above),
            )
            await self._begin_again()
            self._spoiled = False
        return True

    async def _begin_again(self) -> None:
        """Put the partition back to the base, or to nothing. Positions go first: from then on
        nobody may cut away what is to be folded again (services.node.retention)."""
        self._spoiled = self._beginning = True
        self._conversations.withhold()
        self._recalled_before = set()
        self.begun += 1
        self.begins_again()
        for origin, position in self._positions.items():
            self._told_to[origin] = max(position.lsn, self._told_to.get(origin, 0))
        self._positions = {}
        self.wake()
        try:
            checkpoint = await self._base_checkpoint()
        except Damaged:
            self._beginning = False  # it goes on with what it has
            raise
        row = oplog.CheckpointRow.FromString(checkpoint or b"")
        row.applier_epoch, row.hlc = self._epoch, max(row.hlc, self._hlc.last)
        # Written with it: whoever opens the partition next, after a crash, must not go back.
        row.timeline = max(row.timeline, self._timeline)
        written = row.SerializeToString()
        try:
            if self.base is not None and checkpoint is not None:
                await self.base.load(self.partition, self._epoch, written)
            else:
                await self._kv.clear_partition(self.partition, self._epoch, written)
        except StaleWriter as error:
            self._fenced = error
            raise
        self._conversations.clear()
        self._load(row)
        self._beginning = False

    async def _base_checkpoint(self) -> bytes | None:
        """None: there is none, and none is needed."""
        whole = all(source.first_lsn(self.partition) <= 1 for source in self._logs.held().values())
        try:
            checkpoint = await self.base.checkpoint(self.partition) if self.base else None
            if checkpoint is not None:
                self._check_below_seals(checkpoint)
            elif not whole:
                raise Damaged("its logs are cut and there is no snapshot")
        except Damaged as error:
            if not whole:
                raise Damaged(
                    f"partition {self.partition} cannot be folded again: {error}"
                ) from error
            return None
        return checkpoint

    def _check_below_seals(self, checkpoint: bytes) -> None:
        for at in oplog.CheckpointRow.FromString(checkpoint).applied:
            origin = origin_of(at.origin)
            seal = self._seals.get(origin)
            if seal is not None and at.lsn > seal:
                raise Damaged(f"the snapshot has {origin} up to {at.lsn}, above its seal at {seal}")


def _positions_of(row: oplog.CheckpointRow) -> dict[Origin, Position]:
    return {origin_of(p.origin): Position(p.lsn, p.epoch, p.chain) for p in row.applied}
