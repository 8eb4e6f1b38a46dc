"""Which of the records that come in continue a copy. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from imcore.errors import Damaged
from imcore.words import Origin
from services.engines.recent import Recent
from services.engines.records import follows
from services.ports import LogEnd, Record


def by_partition(
    records: Sequence[Record], partitions: int, origin: Origin
) -> dict[int, list[Record]]:
    """Raises Damaged for a partition that does not exist."""
    found: dict[int, list[Record]] = {}
    for record in records:
        if not 0 <= record.partition < partitions:
            raise Damaged(f"a record of {origin} names partition {record.partition}")
        found.setdefault(record.partition, []).append(record)
    return found


def new_records(
    records: Sequence[Record], end: LogEnd, recent: Recent, origin: Origin
) -> list[Record]:
    """Of one partition, whose copy ends at ``end``: those that are not held yet. Raises Damaged
    when one does not continue the copy, or is another than the one that is held."""
    held, found = end, []
    for record in records:
        if record.lsn <= end.lsn:
            chain = held.chain if record.lsn == held.lsn else recent.chain(record.lsn)
            if chain is not None and chain != record.chain:
                raise Damaged(
                    f"record {record.lsn} of partition {record.partition} of {origin} "
                    "differs from the one that is held here"
                )
            continue
        if not follows(end, record):
            raise Damaged(
                f"record {record.lsn} of partition {record.partition} of {origin} does not "
                f"continue the copy, which ends at {end.lsn}"
            )
        found.append(record)
        end = LogEnd(record.lsn, record.chain, record.epoch)
    return found
