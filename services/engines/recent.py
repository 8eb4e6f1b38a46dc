"""The newest records of a partition in memory: what mirrors and appliers read while they keep up.

Pure bookkeeping; bounded in payload bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.ports import Record

RECENT_BYTES = 512 * 1024
_OVERHEAD_BYTES = 200  # of one Record object, so that many small ones are bounded too


class Recent:
    def __init__(self, bytes_max: int = RECENT_BYTES) -> None:
        self._bytes_max = bytes_max
        self._records: dict[int, Record] = {}  # contiguous lsns, ascending
        self._first = 0
        self._bytes = 0

    def add(self, records: Sequence[Record]) -> None:
        """The records follow those added before."""
        if not records:
            return
        if not self._records:
            self._first = records[0].lsn
        for record in records:
            self._records[record.lsn] = record
            self._bytes += len(record.payload) + _OVERHEAD_BYTES
        while self._bytes > self._bytes_max and self._records:
            gone = self._records.pop(self._first)
            self._bytes -= len(gone.payload) + _OVERHEAD_BYTES
            self._first += 1

    def read(self, from_lsn: int, end_lsn: int, limit_bytes: int) -> list[Record]:
        """At least one record when ``from_lsn`` is here; empty when it is not."""
        found: list[Record] = []
        size = 0
        while from_lsn <= end_lsn and (not found or size < limit_bytes):
            record = self._records.get(from_lsn)
            if record is None:
                break
            found.append(record)
            size += len(record.payload)
            from_lsn += 1
        return found

    def chain(self, lsn: int) -> bytes | None:
        record = self._records.get(lsn)
        return record.chain if record else None

    def clear(self) -> None:
        self._records.clear()
        self._bytes = 0
