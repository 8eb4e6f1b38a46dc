"""One partition of a log as the union by lsn of several topics. Pure.

The rule by which a record counts (rule 5): its lsn is the next one, its epoch is not below the
highest seen, and its chain continues. In one topic all that counts stands in ascending order of
lsn, between what stale writers left: so a record with a higher lsn than the next one either comes
from a stale writer, or tells of a hole in this topic (MirrorMaker began, or went on, later), which
another topic fills. It is then read again, from there.

Nothing else is ever taken, so a copy never forks, whatever the topics hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from imcore.errors import Damaged
from services.engines.kafka.index import Hint, Index
from services.engines.records import follows, unpack
from services.ports import LogEnd, Record


@dataclass(slots=True)
class Cuts:
    """What does not count although it would continue the log: records of topic 0 above ``above``,
    and those of topic 1 (the relay) above an lsn that lie below an offset."""

    above: int | None = None
    relay: list[tuple[int, int]] = field(default_factory=list)  # (offset, lsn)

    def hides(self, source: int, offset: int, lsn: int) -> bool:
        if source == 0:
            return self.above is not None and lsn > self.above
        return any(offset < limit and lsn > last for limit, last in self.relay)

    def cut(self, lsn: int, relay_end: int) -> Cuts:
        above = lsn if self.above is None else min(lsn, self.above)
        kept = [(limit, last) for limit, last in self.relay if last < lsn]
        return Cuts(above, [*kept, (relay_end, lsn)])

    def from_lsn(self, lsn: int) -> Cuts:
        """Those that still matter for a log that begins behind that lsn."""
        above = self.above if self.above is not None and self.above >= lsn else None
        return Cuts(above, [(limit, last) for limit, last in self.relay if last >= lsn])

    def dump(self) -> dict[str, Any]:
        return {"above": self.above, "relay": self.relay}


def parse_cuts(document: dict[str, Any]) -> Cuts:
    return Cuts(document["above"], [(limit, last) for limit, last in document["relay"]])


@dataclass(slots=True)
class Source:
    """``offset``: where to read on. ``hole``: (offset, lsn) of the first record ahead."""

    offset: int
    hole: tuple[int, int] | None = None

    @property
    def safe(self) -> int:
        """Nothing that may still count lies before it."""
        return self.offset if self.hole is None else self.hole[0]


class Union:
    def __init__(self, number: int, start: Hint, cuts: Cuts, index: Index) -> None:
        self.number = number
        self.end = start.end
        self.size = start.size
        self.cuts = cuts
        self.index = index
        self.sources = [Source(offset) for offset in start.offsets]
        self.problem = ""  # the last record that was next and did not fit

    def offer(
        self, source: int, records: Sequence[tuple[int, bytes]], next_offset: int
    ) -> list[Record]:
        """Offsets and values that one topic has from its ``offset`` on; returns what was taken."""
        taken: list[Record] = []
        at = self.sources[source]
        for offset, value in records:
            if offset < at.offset:
                continue
            at.offset = offset
            record = self._judge(source, offset, value)
            if record is None:
                continue
            self.index.add(self._hint(source))
            self.end = LogEnd(record.lsn, record.chain, record.epoch)
            self.size += len(value)
            # What stood before it in this topic, with a higher lsn, came from a stale writer.
            at.hole = None
            taken.append(record)
        at.offset = max(at.offset, next_offset)
        if taken:
            self._rewind()
        return taken

    def append(self, records: Sequence[Record], size: int, offset: int) -> None:
        """Records that follow the end, which this process has itself written to topic 0 there."""
        at = self.sources[0]
        at.offset = offset
        self.index.add(self._hint(0))
        last = records[-1]
        self.end = LogEnd(last.lsn, last.chain, last.epoch)
        self.size += size
        at.offset, at.hole = offset + len(records), None

    def _judge(self, source: int, offset: int, value: bytes) -> Record | None:
        try:
            record = unpack(value)
        except Damaged as error:
            self.problem = f"offset {offset} of topic {source}: {error}"
            return None
        end = self.end
        if record.partition != self.number or record.lsn <= end.lsn or record.epoch < end.epoch:
            return None
        if self.cuts.hides(source, offset, record.lsn):
            return None
        if record.lsn > end.lsn + 1:
            at = self.sources[source]
            at.hole = at.hole or (offset, record.lsn)
            return None
        if not follows(end, record):
            self.problem = f"record {record.lsn} at offset {offset} of topic {source} does not fit"
            return None
        return record

    def _rewind(self) -> None:
        """Read on where a hole ended that another topic has filled."""
        for at in self.sources:
            if at.hole is not None and self.end.lsn >= at.hole[1] - 1:
                at.offset, at.hole = at.hole[0], None

    def here(self, source: int = 0) -> Hint:
        """A hint at the end."""
        return self._hint(source)

    def _hint(self, source: int) -> Hint:
        return Hint(self.end, tuple(at.safe for at in self.sources), source, self.size)
