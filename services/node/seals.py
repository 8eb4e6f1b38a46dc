"""Acts on committed seals (rule 7): what this IDC holds above one is published again under its
own current origin, with its old place and client key, and then folded without the originals."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from imcore.convert import place_of
from imcore.errors import Damaged
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, Place
from services.im.incarnation import Register
from services.im.partition import Partition
from services.ports import Log, LogStore

log = logging.getLogger("im.seals")

_READ_BYTES = 256 * 1024


class Seals:
    """Knows every committed seal; ``act`` is idempotent and may be repeated after a crash: a
    second publication is one more alias of the same client key."""

    def __init__(self) -> None:
        self._ends: dict[Origin, tuple[int, ...]] = {}
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
        """Returns how many ops were published again."""
        published = 0
        for origin, copy in store.held().items():
            if not self.sealed(origin):
                continue
            for number, partition in partitions.items():
                seal = self.of(origin, number) or 0
                if copy.end(number).lsn > seal:
                    published += await self._publish(origin, copy, partition, seal)
                    await copy.cut_above(number, seal)
                await partition.applier.seal({origin: seal})
        return published

    async def _publish(self, origin: Origin, copy: Log, partition: Partition, seal: int) -> int:
        published, lsn = 0, seal + 1
        if copy.first_lsn(partition.number) > lsn:
            raise Damaged(f"{origin} is sealed at {seal}, and what comes next is cut away here")
        while lsn <= copy.end(partition.number).lsn:
            records = await copy.read(partition.number, lsn, _READ_BYTES)
            for record in records:
                op = oplog.Op.FromString(record.payload)
                if op.WhichOneof("body") in ("message", "place", "membership", "cursor"):
                    await self._again(partition, origin, op)
                    published += 1
            lsn = records[-1].lsn + 1
        log.warning(
            "%d ops of %s above its seal in partition %d were published again",
            published,
            origin,
            partition.number,
        )
        return published

    async def _again(self, partition: Partition, origin: Origin, op: oplog.Op) -> None:
        place = None
        if op.HasField("message"):
            own = Place(op.hlc, origin, op.seq)
            place = place_of(op.message.place) if op.message.HasField("place") else own
        await partition.republish(op, place)
