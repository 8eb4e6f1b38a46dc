"""Drives the fold of one partition: reads every origin's log, commits, then tells.

Order of steps, and the invariant it keeps: a record is folded only from a durable log (rule 1);
state and checkpoint are one atomic batch, conditional on the applier's epoch (rule 15); nothing is
told (pushed, signalled, counted as applied) before its batch is committed. So a crash anywhere
repeats at most what was never told, and a paused applier that wakes up late can overwrite nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from imcore.convert import origin_of, origin_pb
from imcore.errors import Damaged, StaleWriter, Unavailable
from imcore.hlc import Hlc
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, Vector
from services.im.cache import ConversationCache
from services.im.fold import Effects, Fold, Rows, Taken, conversations_of, fits, needs
from services.im.reader import Position, Verdict
from services.ports import Batch, Kv, Log, LogStore

log = logging.getLogger("im.applier")

_READ_BYTES = 256 * 1024
_RETRY_S = 0.2

Told = Callable[[Origin, Effects], None]
Seals = dict[Origin, int]  # of one partition: the last lsn that counts


class Base(Protocol):
    """The snapshot that a partition is folded again from when its logs no longer begin at their
    start: not above any seal that can still come (services.retention)."""

    async def checkpoint(self, partition: int) -> bytes | None:
        """What the snapshot has of the partition, checked; None: there is no snapshot. Raises
        Damaged."""
        ...

    async def load(self, partition: int, applier_epoch: int) -> None:
        """Put that in the place of the partition's rows and checkpoint."""
        ...


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
        self._spoiled = False  # a batch is under way, or has failed
        self.begun = 0  # how often it was folded again
        self._encoded: dict[Origin, tuple[bytes, int, bytes]] = {}  # chain, closed, their bytes
        self._told_to: Vector = {}  # while it is folded again: what was told before
        self._owed: list[tuple[Origin, Effects]] = []  # told once it is whole again
        self.closed: dict[Origin, int] = {}
        self.newest: dict[Origin, int] = {}  # HLC of the last op folded
        self._skipped: dict[Origin, set[int]] = {}  # lsns of ops that cannot be stored
        self._problem: str | None = None
        self.base: Base | None = None
        self.begins_again: Callable[[], None] = lambda: None  # what was known is not any more

    # -------------------------------------------------------------------------- positions

    def applied(self) -> Vector:
        return {origin: position.lsn for origin, position in self._positions.items()}

    def lsn(self, origin: Origin) -> int:
        position = self._positions.get(origin)
        return position.lsn if position else 0

    @property
    def timeline(self) -> int:
        return self._timeline

    async def open(self) -> None:
        """Take the partition over and continue from its checkpoint."""
        self._epoch, stored = await self._kv.open_partition(self.partition)
        self._load(stored)

    def _load(self, stored: bytes | None) -> None:
        row = oplog.CheckpointRow() if stored is None else oplog.CheckpointRow.FromString(stored)
        self._positions = {
            origin_of(p.origin): Position(p.lsn, p.epoch, p.chain) for p in row.applied
        }
        self.closed = {origin_of(c.origin): c.hlc for c in row.closed}
        self._timeline = row.timeline
        self._hlc.observe(row.hlc)

    def _checkpoint(self) -> bytes:
        row = oplog.CheckpointRow(
            applier_epoch=self._epoch, hlc=self._hlc.last, timeline=self._timeline
        )
        parts = [self._part(origin, at) for origin, at in self._positions.items()]
        return row.SerializeToString() + b"".join(parts)

    def _part(self, origin: Origin, at: Position) -> bytes:
        """Of one origin. A batch moves one origin, so the others' bytes are kept: messages of
        Protobuf that stand one behind the other are read as one."""
        closed = self.closed.get(origin, 0)
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

    def wake_if_behind(self) -> None:
        """A log has grown, perhaps in other partitions only: to drain for nothing costs as much as
        a quarter of a message, and there are as many partitions as appliers."""
        if self._spoiled or self._behind():
            self._wake.set()

    def _behind(self) -> list[tuple[Origin, Log]]:
        """The logs with durable records that are not folded."""
        return [
            (origin, source)
            for origin, source in self._logs.held().items()
            if source.end(self.partition).lsn > self.lsn(origin)
        ]

    async def run(self) -> None:
        """Until cancelled, or fenced off by a newer applier (StaleWriter)."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self.drain()
            except StaleWriter:
                raise
            except (Unavailable, LookupError, OSError) as error:
                self._failed(error)
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def _failed(self, error: Exception) -> None:
        sentence = f"partition {self.partition} cannot be applied for now: {error}"
        if sentence != self._problem:
            log.error(sentence)
        self._problem = sentence

    @property
    def alarm(self) -> str | None:
        return self._problem or self._left_out()

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
        """After a batch that failed, memory may be ahead of what was committed: go back to the
        checkpoint before anything else is folded, whoever asks for it. A take-over that fails half
        way may have fenced the old epoch off, so it is repeated until it succeeds."""
        if self._spoiled:
            self._conversations.clear()
            await self.open()
            self._spoiled = False

    async def drain(self) -> None:
        """Fold everything durable that is not folded yet."""
        begun = self.begun
        async with self._turn:
            await self._sound()
        more = True
        while more:
            more = False
            for origin, source in self._behind():
                async with self._turn:
                    await self._sound()
                    self._spoiled = True
                    more |= await self._one_batch(origin, source)
                    self._spoiled = False
        self._problem = None
        if begun == self.begun:  # else not all of it was folded after that beginning
            await self._release(begun)

    async def _release(self, begun: int) -> None:
        """Everything is folded again. What came in meanwhile could not be pushed, since nobody
        could be told how far its conversation reaches: it is told now, or nobody would ever be."""
        named = {name for _, effects in self._owed for name in effects.entries}
        conversations = await self._conversations.load_all(named)
        if begun != self.begun:
            return
        self._conversations.release()
        self._told_to.clear()
        owed, self._owed = self._owed, []
        for origin, effects in owed:
            effects.keep_below(
                {name: at.heads.get(origin, 0) for name, at in conversations.items()}
            )
            self._told(origin, effects)

    async def _one_batch(self, origin: Origin, source: Log) -> bool:
        position = self._positions.setdefault(origin, Position())
        end = min(source.end(self.partition).lsn, self._seals.get(origin, 1 << 63))
        again = position.lsn < self._told_to.get(origin, 0)
        if again:  # what was told before and what was not never share a batch
            end = min(end, self._told_to[origin])
        if end <= position.lsn:
            return False
        records = await source.read(self.partition, position.lsn + 1, _READ_BYTES)
        taken: list[Taken] = []
        for record in records:
            if record.lsn > end:
                break
            verdict = position.judge(record)
            if verdict is Verdict.GAP:
                raise LookupError(
                    f"{origin} lsn {position.lsn + 1} is missing, {record.lsn} is next"
                )
            if verdict is Verdict.TAKE:
                position.take(record)
                taken.append(Taken(record, oplog.Op.FromString(record.payload)))
        if not taken:
            return False
        effects = await self._commit(origin, taken)
        self._tell(origin, effects, again)
        self._conversations.trim()
        return True

    def _tell(self, origin: Origin, effects: Effects, again: bool) -> None:
        if not self._conversations.withheld:
            self._told(origin, effects)
            return
        self._told(origin, Effects(keys=effects.keys, routes=effects.routes))
        if not again:
            later = Effects(effects.entries, effects.audience, effects.cursors)
            self._owed.append((origin, later))

    async def _commit(self, origin: Origin, taken: list[Taken]) -> Effects:
        for item in taken:
            self._hlc.observe(item.op.hlc)
            if item.op.HasField("tick"):
                self.closed[origin] = max(item.op.hlc, self.closed.get(origin, 0))
        self.newest[origin] = taken[-1].op.hlc
        taken = self._fitting(origin, taken)
        ops = [item.op for item in taken]
        conversations = await self._conversations.load_all(conversations_of(ops))
        wanted = list(needs(self.partition, ops))
        fetched = dict(zip(wanted, await self._kv.get_many(wanted), strict=True))
        rows = Rows(fetched)
        self._timeline += 1
        effects = self._fold.batch(taken, origin, conversations, rows, self._timeline)
        await self._kv.commit(
            Batch(self.partition, self._epoch, self._checkpoint(), rows.puts, rows.deletes)
        )
        return effects

    # ------------------------------------------------------------------------------ seals

    async def seal(self, seals: Seals) -> bool:
        """Ops of these origins above these lsns do not count. When some of them are folded
        already, the partition is thrown away and folded again without them; True then."""
        async with self._turn:
            await self._sound()
            self._seals.update(seals)
            above = [o for o, lsn in seals.items() if self.lsn(o) > lsn]
            if not above:
                return False
            log.warning(
                "partition %d holds ops above the seals of %s: folding it again without them",
                self.partition,
                ", ".join(str(origin) for origin in above),
            )
            await self._begin_again()
        self.wake()
        return True

    async def _begin_again(self) -> None:
        """Put the partition back to the base, or to nothing. Positions go first: from then on
        nobody may cut away what is to be folded again (services.node.retention)."""
        timeline, self._spoiled = self._timeline, True
        self._conversations.withhold()
        self.begun += 1
        self.begins_again()
        for origin, position in self._positions.items():
            self._told_to[origin] = max(position.lsn, self._told_to.get(origin, 0))
        self._positions = {}
        checkpoint = await self._base_checkpoint()
        if self.base is not None and checkpoint is not None:
            await self.base.load(self.partition, self._epoch)
        else:
            await self._kv.clear_partition(self.partition, self._epoch)
        self._conversations.clear()
        self._load(checkpoint)
        self._timeline = max(timeline, self._timeline)
        self._spoiled = False

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
