"""What an IDC's log files hold, read from outside while it is down: nobody's word is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imcore.history import tag_of
from imcore.proto import oplog_pb2 as oplog
from services.engines.records import HEADER_BYTES, pack, record_after, unpack_at
from services.engines.segments import SEGMENT_HEADER_BYTES, SUFFIX
from services.ports import LogEnd, Record


def partitions(data: Path, origin: str) -> list[int]:
    return sorted(int(path.name) for path in (data / "log" / "logs" / origin).iterdir())


def segments(data: Path, origin: str, partition: int) -> list[Path]:
    """The segment files of one log of an IDC with this data folder, oldest first."""
    return sorted((data / "log" / "logs" / origin / str(partition)).glob(f"*{SUFFIX}"))


def records(data: Path, origin: str, partition: int) -> Iterator[Record]:
    """Whole records up to the first bad byte of each file."""
    for path in segments(data, origin, partition):
        content, at = path.read_bytes(), SEGMENT_HEADER_BYTES
        while (record := unpack_at(content, at)) is not None:
            yield record
            at += HEADER_BYTES + len(record.payload)


def messages(data: Path, origin: str) -> Iterator[tuple[int, int, str]]:
    """(partition, lsn, the history's tag) of every message in one log."""
    for partition in partitions(data, origin):
        for record in records(data, origin, partition):
            op = oplog.Op.FromString(record.payload)
            if op.HasField("message"):
                yield partition, record.lsn, tag_of(op.message.content)


def tags(data: Path, origin: str) -> set[str]:
    return {tag for _, _, tag in messages(data, origin)}


def above(data: Path, origin: str, held: Mapping[str, Sequence[int]]) -> set[str]:
    """Tags of the messages in one log that lie above what every other IDC holds of it. ``held``:
    by IDC, the last lsn by partition."""
    ends = [max(ends) for ends in zip(*held.values(), strict=True)]
    return {tag for partition, lsn, tag in messages(data, origin) if lsn > ends[partition]}


def half_a_record_after(last: Record) -> bytes:
    """What a write that was cut short leaves behind the last record."""
    following = record_after(
        LogEnd(last.lsn, last.chain, last.epoch), last.partition, last.epoch, bytes(200)
    )
    packed = pack(following)
    return packed[: len(packed) // 2]
