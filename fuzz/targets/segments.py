"""The log reader: what a partition's segment files hold after anything has happened to them.
Recovery never raises; every record before the first changed byte is there afterwards, unchanged;
a second opening finds the same log; and it takes records again and gives them back.

An input is a list of edits of a good log of three files: seven bytes say where, what, how much and
with what."""

from __future__ import annotations

import struct

from fuzz.memory_disk import MemoryDisk
from fuzz.target import Target
from imcore.errors import Damaged
from services.engines.records import (
    EMPTY_END,
    pack,
    record_after,
    records_after,
    unpack,
    unpack_at,
)
from services.engines.recovery import Recovered, recover
from services.engines.segments import SEGMENT_HEADER_BYTES
from services.ports import LogEnd, Record

FOLDER, PARTITION, SEGMENT_BYTES = "log", 3, 600
_EDIT = struct.Struct(">BHBBH")  # file, offset, what, value, size
EDITS_MAX = 6


def _good() -> tuple[dict[str, bytes], list[Record]]:
    disk = MemoryDisk()
    files = recover(disk, FOLDER, PARTITION, segment_bytes=SEGMENT_BYTES).files
    records = records_after(EMPTY_END, PARTITION, 2, [bytes([n]) * (n * 7 % 60) for n in range(24)])
    for record in records:
        files.write(pack(record), record.lsn)
        files.sync(LogEnd(record.lsn, record.chain, record.epoch))
    return disk.files, records


GOOD, RECORDS = _good()
PATHS = sorted(GOOD)


def check(data: bytes) -> None:
    disk = MemoryDisk()
    disk.files = dict(GOOD)
    touched = False
    for at in range(0, min(len(data), EDITS_MAX * _EDIT.size), _EDIT.size):
        if len(data) - at >= _EDIT.size:
            touched |= _edit(disk, *_EDIT.unpack_from(data, at))
    _codec(disk.files.get(PATHS[0], b""))
    intact = _intact(disk.files)
    found = recover(disk, FOLDER, PARTITION, segment_bytes=SEGMENT_BYTES)
    kept = _read(found)
    assert kept[:intact] == RECORDS[:intact], f"{intact} whole records, {len(kept)} recovered"
    assert touched or (len(kept) == len(RECORDS) and found.missing is None)
    found.files.close()
    again = recover(disk, FOLDER, PARTITION, segment_bytes=SEGMENT_BYTES)
    assert (again.end, again.missing) == (found.end, None), "the second opening finds another log"
    assert _read(again) == kept
    more = record_after(again.end, PARTITION, again.end.epoch + 1, b"and on")
    again.files.write(pack(more), more.lsn)
    again.files.sync(LogEnd(more.lsn, more.chain, more.epoch))
    last = recover(disk, FOLDER, PARTITION, segment_bytes=SEGMENT_BYTES)
    assert _read(last) == [*kept, more], "what was written after recovery is not read back"


def _edit(disk: MemoryDisk, number: int, offset: int, what: int, value: int, size: int) -> bool:
    """Whether it changed anything."""
    path = PATHS[number % len(PATHS)]
    content = disk.files.get(path)
    if content is None:
        return False
    at, size = offset % (len(content) + 1), size % 700
    kind = what % 8
    if kind == 0:
        fresh = content[:at]
    elif kind == 1:
        fresh = content[:at] + bytes([value]) * size + content[at + size :]
    elif kind == 2:
        fresh = content[:at] + content[at + size :]
    elif kind == 3:
        fresh = content[:at] + content[at : at + size] * 2 + content[at + size :]
    elif kind == 4:
        other = disk.files.get(PATHS[value % len(PATHS)], b"")
        fresh = content[:at] + other[:size] + content[at:]
    elif kind == 5:  # a whole record that is not this log's
        record = Record(value % 5, value, size, bytes(16), bytes(value))
        fresh = content[:at] + pack(record) + content[at:]
    elif kind == 6:
        flipped = bytes(each ^ 1 << value % 8 for each in content[at : at + 1])
        fresh = content[:at] + flipped + content[at + 1 :]
    else:
        del disk.files[path]
        return True
    disk.files[path] = fresh
    return fresh != content


def _intact(files: dict[str, bytes]) -> int:
    """How many records stand before the first changed byte."""
    count = 0
    for path in PATHS:
        good, now = GOOD[path], files.get(path, b"")
        same = next((n for n, (a, b) in enumerate(zip(good, now, strict=False)) if a != b), None)
        whole = min(len(good), len(now)) if same is None else same
        at = SEGMENT_HEADER_BYTES
        while (record := unpack_at(good, at)) is not None:
            at += len(pack(record))
            if at > whole:
                return count
            count += 1
        if now != good:
            return count
    return count


def _read(found: Recovered) -> list[Record]:
    records: list[Record] = []
    first = found.files.first_lsn()
    while first + len(records) <= found.end.lsn:
        records += found.files.read(first + len(records), found.end.lsn, 1 << 20)
    return records


def _codec(data: bytes) -> None:
    body = data[SEGMENT_HEADER_BYTES:]
    try:
        record = unpack(body)
    except Damaged:
        return
    assert pack(record) == body


def seeds() -> list[bytes]:
    edits = (
        (2, 400, 0), (1, 99, 1), (0, 0, 2), (1, 47, 3), (2, 9, 4), (2, 0xFFFF, 5), (1, 200, 6),
        (1, 0, 7),
    )  # fmt: skip
    return [b"", *(_EDIT.pack(number, offset, what, 3, 60) for number, offset, what in edits)]


TARGET = Target("segments", check, seeds, bytes_max=EDITS_MAX * _EDIT.size)
