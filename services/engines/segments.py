"""One partition's segment files: blocking, used from the log's one commit thread.

A file's name is its first lsn; its header holds where the log stood before it, so each header
is the written end of the file before. Only the last file grows. Order of steps on a roll: the
old file is synced, the new one is written under another name, synced, renamed, and the folder
synced; so a file that has its name has a whole header.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field

from imcore.errors import Damaged, Unavailable
from services.engines.disk import PASSING, Disk, File
from services.engines.records import (
    HEADER_BYTES,
    highest_behind,
    record_after,
    unpack_at,
)
from services.ports import LogEnd, Record

_HEADER = struct.Struct(">8sHQQ16s")
_CRC = struct.Struct(">I")
_MAGIC = b"IMSEG\0\0\1"
SEGMENT_HEADER_BYTES = _HEADER.size + _CRC.size
SEGMENT_BYTES = 16 * 1024 * 1024
_INDEX_STEP_BYTES = 32 * 1024
_READ_CHUNK_BYTES = 256 * 1024
SUFFIX = ".seg"


def header(partition: int, base: LogEnd) -> bytes:
    body = _HEADER.pack(_MAGIC, partition, base.lsn, base.epoch, base.chain)
    return body + _CRC.pack(zlib.crc32(body))


def parse_header(data: bytes, partition: int) -> LogEnd | None:
    """Where the log stood before this file; None when the header is not whole."""
    if len(data) < SEGMENT_HEADER_BYTES:
        return None
    body = data[: _HEADER.size]
    magic, number, lsn, epoch, chain = _HEADER.unpack(body)
    (crc,) = _CRC.unpack_from(data, _HEADER.size)
    if magic != _MAGIC or number != partition or crc != zlib.crc32(body):
        return None
    return LogEnd(lsn, chain, epoch)


@dataclass(slots=True)
class Segment:
    """``index``: (lsn, offset) of some records, ascending; the first record is always there."""

    path: str
    base: LogEnd
    size: int
    index: list[tuple[int, int]] = field(default_factory=list)

    def note(self, lsn: int, offset: int) -> None:
        if not self.index or offset - self.index[-1][1] >= _INDEX_STEP_BYTES:
            self.index.append((lsn, offset))

    def offset_near(self, lsn: int) -> int:
        """The offset of a record at or before ``lsn``."""
        at = bisect_right(self.index, lsn, key=lambda pair: pair[0]) - 1
        return self.index[at][1] if at >= 0 else SEGMENT_HEADER_BYTES


@dataclass(slots=True)
class Scan:
    """What a segment holds: whole records up to ``good_bytes``, and what lies behind them."""

    end: LogEnd
    good_bytes: int
    behind: int  # highest lsn of a valid record behind bad bytes; 0: none
    index: list[tuple[int, int]]


def scan(data: bytes, partition: int, base: LogEnd) -> Scan:
    """Walk the records of a whole segment file, checking CRC and chain of each. Pure."""
    probe = Segment("", base, 0)
    end, offset = base, SEGMENT_HEADER_BYTES
    while offset < len(data):
        record = unpack_at(data, offset)
        if record is None or record.partition != partition:
            break
        if record_after(end, partition, record.epoch, record.payload) != record:
            break
        probe.note(record.lsn, offset)
        end = LogEnd(record.lsn, record.chain, record.epoch)
        offset += HEADER_BYTES + len(record.payload)
    # The bad place itself counts too: a whole record of another chain is damage, not a torn tail.
    behind = highest_behind(data, offset, partition, end.lsn) if offset < len(data) else 0
    return Scan(end, offset, behind, probe.index)


class PartitionFiles:
    """``segments`` is replaced, never changed in place, so readers in other threads may use it;
    reads pass the durable end and never look beyond it."""

    def __init__(
        self, disk: Disk, folder: str, partition: int, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._disk = disk
        self.folder = folder
        self.partition = partition
        self._segment_bytes = segment_bytes
        self.segments: tuple[Segment, ...] = ()
        self._active: File | None = None
        self._synced_bytes = 0  # of the last segment
        self._synced_end = LogEnd(0, bytes(16), 0)

    # ------------------------------------------------------------------------- life

    def adopt(self, segments: list[Segment], end: LogEnd) -> None:
        """Take what recovery found; all of it is durable."""
        self.segments = tuple(segments)
        if not segments:
            self._new_segment(end)
        self._active = self._disk.open(self.segments[-1].path)
        self._synced_bytes = self.segments[-1].size
        self._synced_end = end

    def close(self) -> None:
        if self._active is not None:
            self._active.close()
            self._active = None

    def first_lsn(self) -> int:
        return self.segments[0].base.lsn + 1

    # ----------------------------------------------------------------------- writing

    def write(self, data: bytes, first_lsn: int) -> None:
        """Append whole records from ``first_lsn`` on, not durable before ``sync``."""
        if self._synced_bytes >= self._segment_bytes:
            self._roll()
        active, segment = self._file(), self.segments[-1]
        segment.note(first_lsn, active.size)
        active.append(data)

    def sync(self, end: LogEnd) -> None:
        active = self._file()
        active.sync()
        self._synced_bytes = self.segments[-1].size = active.size
        self._synced_end = end

    def rollback(self) -> None:
        """After a failed write or sync: back to what is durable, durably."""
        active, segment = self._file(), self.segments[-1]
        active.truncate(self._synced_bytes)
        active.sync()
        segment.index = [pair for pair in segment.index if pair[1] < self._synced_bytes]

    def _roll(self) -> None:
        """The old file stays the one to roll back to until the new one is open."""
        old, segments = self._file(), self.segments
        self._new_segment(self._synced_end)
        try:
            self._active = self._disk.open(self.segments[-1].path)
        except BaseException:
            self.segments = segments  # the new one is written again by the next roll
            raise
        old.close()
        self._synced_bytes = self.segments[-1].size

    def _new_segment(self, base: LogEnd) -> None:
        path = f"{self.folder}/{base.lsn + 1:020d}{SUFFIX}"
        self._disk.write_whole(path, header(self.partition, base))
        self.segments = (*self.segments, Segment(path, base, SEGMENT_HEADER_BYTES))

    def _file(self) -> File:
        if self._active is None:
            raise ValueError(f"{self.folder} is closed")
        return self._active

    # ----------------------------------------------------------------------- reading

    def read(self, from_lsn: int, end_lsn: int, limit_bytes: int) -> list[Record]:
        """Durable records of one segment, at least one. Raises Damaged, LookupError and, when it
        cannot be opened just now, Unavailable."""
        segments = self.segments
        at = bisect_right(segments, from_lsn - 1, key=lambda segment: segment.base.lsn) - 1
        if at < 0:
            raise LookupError(f"lsn {from_lsn} of partition {self.partition} is truncated away")
        if at + 1 < len(segments):
            end_lsn = min(end_lsn, segments[at + 1].base.lsn)
        segment = segments[at]
        return self._read_segment(segment, from_lsn, end_lsn, limit_bytes)

    def _read_segment(
        self, segment: Segment, from_lsn: int, end_lsn: int, limit_bytes: int
    ) -> list[Record]:
        offset = segment.offset_near(from_lsn)
        data, at, size = b"", 0, 0
        records: list[Record] = []
        expected = 0
        while not records or (size < limit_bytes and records[-1].lsn < end_lsn):
            record = unpack_at(data, at)
            if record is None:
                offset, at = offset + at, 0
                data = self._more(segment, offset, from_lsn)
                continue
            at += HEADER_BYTES + len(record.payload)
            if record.partition != self.partition or (expected and record.lsn != expected):
                raise Damaged(f"{segment.path} holds a wrong record near offset {offset + at}")
            expected = record.lsn + 1
            if record.lsn >= from_lsn:
                records.append(record)
                size += len(record.payload)
        return records

    def _more(self, segment: Segment, offset: int, lsn: int) -> bytes:
        """Bytes from ``offset`` on with at least one whole record at their start."""
        try:
            data = self._disk.read(segment.path, offset, _READ_CHUNK_BYTES)
            needed = HEADER_BYTES + int.from_bytes(data[:4], "big")
            if needed > len(data) == _READ_CHUNK_BYTES:
                data = self._disk.read(segment.path, offset, needed)
        except FileNotFoundError as error:
            raise LookupError(f"lsn {lsn} is truncated away") from error
        except OSError as error:
            if error.errno in PASSING:
                raise Unavailable(f"cannot read {segment.path}: {error.strerror}") from error
            raise Damaged(f"cannot read {segment.path}: {error.strerror}") from error
        if unpack_at(data, 0) is None:
            raise Damaged(f"{segment.path} fails its check at offset {offset}")
        return data

    # -------------------------------------------------------------- truncate and cut

    def truncate_below(self, lsn: int) -> None:
        """Whole segments below ``lsn`` go, oldest first, so no crash leaves a gap."""
        while len(self.segments) > 1 and self.segments[1].base.lsn < lsn:
            self._disk.remove(self.segments[0].path)
            self.segments = self.segments[1:]
        self._disk.sync_folder(self.folder)

    def cut_above(self, lsn: int) -> LogEnd:
        """Newest first, so no crash leaves a gap. Returns the new end. Raises LookupError."""
        if lsn < self.segments[0].base.lsn:
            raise LookupError(f"lsn {lsn} of partition {self.partition} is truncated away")
        end = self.segments[0].base
        if lsn > end.lsn:
            record = self.read(lsn, lsn, 1)[0]
            end = LogEnd(record.lsn, record.chain, record.epoch)
        while len(self.segments) > 1 and self.segments[-1].base.lsn >= lsn:
            self._disk.remove(self.segments[-1].path)
            self.segments = self.segments[:-1]
        self._disk.sync_folder(self.folder)
        segment = self.segments[-1]
        size = self._size_up_to(segment, lsn)
        self._file().close()
        self._active = self._disk.open(segment.path)
        self._synced_bytes, self._synced_end = size, end
        self.rollback()
        segment.size = size
        return end

    def _size_up_to(self, segment: Segment, lsn: int) -> int:
        if lsn <= segment.base.lsn:
            return SEGMENT_HEADER_BYTES
        offset = segment.offset_near(lsn)
        data = self._disk.read(segment.path, offset)
        at = 0
        while True:
            record = unpack_at(data, at)
            if record is None:
                raise Damaged(f"{segment.path} fails its check at offset {offset + at}")
            at += HEADER_BYTES + len(record.payload)
            if record.lsn == lsn:
                return offset + at

    def bytes_above(self, lsn: int) -> int:
        """About how much the records above ``lsn`` take."""
        at = bisect_right(self.segments, lsn, key=lambda segment: segment.base.lsn) - 1
        above = sum(segment.size for segment in self.segments[at + 1 :])
        if at >= 0:
            segment = self.segments[at]
            above += segment.size - segment.offset_near(lsn + 1)
        return above

    def start_at(self, end: LogEnd) -> None:
        """Forget everything, oldest first, so no crash leaves a gap, and go on from ``end`` (a
        copy that begins with a snapshot)."""
        self.close()
        for segment in self.segments:
            self._disk.remove(segment.path)
        self._disk.sync_folder(self.folder)
        self.segments = ()
        self.adopt([], end)
