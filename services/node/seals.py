"""Acts on committed seals (rule 7): what this IDC holds above one is published again under its
own current origin, with its old place and client key, and then folded without the originals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from imcore.errors import Damaged, ImError, Unavailable
from imcore.levels import LEVEL, level_of
from imcore.proto import oplog_pb2 as oplog
from imcore.sometimes import PUBLISHED_AGAIN, sometimes
from imcore.words import Origin
from services.im.applied import applied_above
from services.im.fold import fits
from services.im.incarnation import Register
from services.im.partition import Partition
from services.ports import Log, LogStore

log = logging.getLogger("im.seals")

_READ_BYTES = 256 * 1024
_PUBLISHED = (
    "message", "place", "membership", "cursor", "change", "setting", "friend", "device_keys",
)  # fmt: skip


class Seals:
    """Knows every committed seal; ``act`` is idempotent and may be repeated after a crash: a
    second publication is one more alias of the same client key."""

    def __init__(self) -> None:
        self._ends: dict[Origin, tuple[int, ...]] = {}
        self.published: dict[Origin, int] = {}  # ops above a seal, since this start
        self._acting = asyncio.Lock()
        self.problem: str | None = None  # why a known one cannot be acted on yet

    def learn(self, idc: str, register: Register) -> bool:
        """True when there is one that was not known."""
        fresh = {
            Origin(idc, seal.incarnation): seal.ends
            for seal in register.seals
            if Origin(idc, seal.incarnation) not in self._ends
        }
        self._ends.update(fresh)
        return bool(fresh)

    def known(self) -> dict[Origin, tuple[int, ...]]:
        return dict(self._ends)

    def of(self, origin: Origin, partition: int) -> int | None:
        """The last lsn that counts, or None while the origin is not sealed."""
        ends = self._ends.get(origin)
        if ends is None:
            return None
        return ends[partition] if partition < len(ends) else 0

    def sealed(self, origin: Origin) -> bool:
        return origin in self._ends

    async def act(self, store: LogStore, partitions: Mapping[int, Partition]) -> int:
        """Returns how many ops were published again. What can be done is done, also when something
        else has to wait; then raises why (Damaged before Unavailable)."""
        async with self._acting:
            return await self._act(store, partitions)

    async def _act(self, store: LogStore, partitions: Mapping[int, Partition]) -> int:
        published, problems = 0, list[ImError]()
        for number, partition in partitions.items():
            done: dict[Origin, int] = {}
            for origin in list(self._ends):  # more may be learned meanwhile
                seal = self.of(origin, number) or 0
                try:
                    copy = store.held().get(origin)
                    published += await self._publish(origin, copy, partition, seal)
                    if copy is not None:
                        await copy.cut_above(number, seal)
                    done[origin] = seal
                except ImError as error:
                    problems.append(error)
            try:
                await partition.applier.seal(done)
            except ImError as error:
                problems.append(error)
        for problem in sorted(problems, key=lambda p: not isinstance(p, Damaged)):
            raise problem
        return published

    async def _publish(
        self, origin: Origin, copy: Log | None, partition: Partition, seal: int
    ) -> int:
        """What is held above the seal, then what was folded and is not held any more: a log that
        was damaged may lack what its own KV still has."""
        end = copy.end(partition.number).lsn if copy is not None else 0
        applied = partition.applier.lsn(origin)
        if max(end, applied) <= seal:
            return 0
        published, hlc = 0, 0
        if copy is not None and end > seal:
            published, hlc = await self._publish_held(origin, copy, partition, seal)
        if applied > max(end, seal):
            hlc = hlc or await _hlc_at(origin, copy, partition.number, seal)
            async for ops in applied_above(partition.kv, partition.number, origin, hlc):
                await partition.republish(origin, ops)
                published += len(ops)
        self.published[origin] = self.published.get(origin, 0) + published
        if published:
            sometimes(PUBLISHED_AGAIN)
        log.warning(
            "%d ops of %s above its seal in partition %d were published again",
            published,
            origin,
            partition.number,
        )
        return published

    async def _publish_held(
        self, origin: Origin, copy: Log, partition: Partition, seal: int
    ) -> tuple[int, int]:
        """Returns how many, and the HLC of the last record that is held."""
        published, hlc, lsn = 0, 0, seal + 1
        if copy.first_lsn(partition.number) > lsn:
            raise Damaged(f"{origin} is sealed at {seal}, and what comes next is cut away here")
        while lsn <= copy.end(partition.number).lsn:
            records = await copy.read(partition.number, lsn, _READ_BYTES)
            if not records:
                raise Unavailable(f"the log of {origin} was cut while it was read")
            ops = [oplog.Op.FromString(record.payload) for record in records]
            if any(level_of(op) > LEVEL for op in ops):
                raise Unavailable(
                    f"a newer program has to publish what {origin} has above its seal"
                )
            wanted = [op for op in ops if op.WhichOneof("body") in _PUBLISHED and fits(op)]
            await partition.republish(origin, wanted)
            published += len(wanted)
            lsn, hlc = records[-1].lsn + 1, ops[-1].hlc
        return published, hlc


async def _hlc_at(origin: Origin, copy: Log | None, partition: int, seal: int) -> int:
    """HLC rises with the lsn, so that of the last record that counts tells what lies above it."""
    if seal == 0:
        return 0
    if copy is None or copy.end(partition).lsn < seal:
        raise Unavailable(f"the log of {origin} is not here yet up to its seal at {seal}")
    if copy.first_lsn(partition) > seal:
        raise Damaged(f"{origin} is sealed at {seal}, and that record is cut away here")
    records = await copy.read(partition, seal, 1)
    if not records:
        raise Unavailable(f"the log of {origin} was cut while it was read")
    return oplog.Op.FromString(records[0].payload).hlc
