"""What a partition's segment files hold after a crash; blocking.

Bad bytes at the end of the last file with nothing valid behind them are a torn tail: a write that
nobody was told of; it is cut. Bad bytes with valid records behind them, in an earlier file, or
below an end that was written down, are damage: cut as well, and said. (A power loss may also write
the pages of one unacknowledged write out of order, which then counts as damage: the safe side.)
What was behind the bad place is kept beside the log as ``*.damaged``. Order of steps: copy the
damaged file aside, rename the later files last to first, cut; a crash anywhere between
finds the same damage again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from services.engines.disk import Disk
from services.engines.records import EMPTY_END
from services.engines.segments import (
    SEGMENT_BYTES,
    SUFFIX,
    PartitionFiles,
    Scan,
    Segment,
    parse_header,
    scan,
)
from services.ports import LogEnd

log = logging.getLogger("im.log")

_DAMAGED = ".damaged"


class Missing(NamedTuple):
    """Lsns that were written once and cannot be read any more."""

    first: int
    last: int


class Recovered(NamedTuple):
    files: PartitionFiles
    end: LogEnd
    missing: Missing | None


class _Walk(NamedTuple):
    segments: list[Segment]  # whole, but for the last of them perhaps
    end: LogEnd
    highest: int  # the highest lsn that was ever seen written
    torn: Scan | None  # the last segment's, when it has bad bytes at its end
    damaged: bool


def recover(
    disk: Disk,
    folder: str,
    partition: int,
    written_end: int = 0,
    segment_bytes: int = SEGMENT_BYTES,
    damaged: Callable[[Missing], None] = lambda missing: None,
) -> Recovered:
    """``written_end``: an lsn that the partition is known to have reached (0: not known).
    ``damaged`` is called before the cut that hides the damage from the next opening."""
    disk.make_folder(folder)
    for name in disk.list(folder):
        if name.endswith(".new"):
            disk.remove(f"{folder}/{name}")
    names = [name for name in disk.list(folder) if name.endswith(SUFFIX)]
    walk = _walk(disk, folder, partition, names)
    highest = max(walk.highest, written_end)
    missing = None
    if walk.damaged or highest > walk.end.lsn:
        missing = Missing(walk.end.lsn + 1, max(highest, walk.end.lsn + 1))
        damaged(missing)
        _keep_aside(disk, folder, names, len(walk.segments))
    torn_bytes = _cut(disk, walk)
    if torn_bytes and missing is None:
        log.warning("a torn tail of %d bytes was cut from %s", torn_bytes, folder)
    files = PartitionFiles(disk, folder, partition, segment_bytes)
    files.adopt(walk.segments, walk.end)
    return Recovered(files, walk.end, missing)


def _walk(disk: Disk, folder: str, partition: int, names: list[str]) -> _Walk:
    segments: list[Segment] = []
    end = EMPTY_END
    for position, name in enumerate(names):
        path = f"{folder}/{name}"
        data = disk.read(path)
        base = parse_header(data, partition)
        # Under another's name it would be overwritten by the file that comes to have this one.
        if base is None or base.lsn + 1 != _named(name) or (segments and base != end):
            return _Walk(segments, end, _last_lsn(disk, folder, partition, names), None, True)
        found = scan(data, partition, base)
        end = found.end
        segments.append(Segment(path, base, found.good_bytes, found.index))
        if found.good_bytes < len(data):
            last = position + 1 == len(names)
            damaged = not last or found.behind > 0
            highest = end.lsn if last else _last_lsn(disk, folder, partition, names)
            return _Walk(segments, end, max(highest, found.behind), found, damaged)
    return _Walk(segments, end, end.lsn, None, False)


def _last_lsn(disk: Disk, folder: str, partition: int, names: list[str]) -> int:
    """The highest lsn that the last file tells of."""
    data = disk.read(f"{folder}/{names[-1]}")
    base = parse_header(data, partition)
    if base is None:
        return _named(names[-1])
    found = scan(data, partition, base)
    return max(found.end.lsn, found.behind)


def _named(name: str) -> int:
    """The first lsn of the file by its name; 0: it is no segment's."""
    lsn = name.removesuffix(SUFFIX)
    return int(lsn) if lsn.isascii() and lsn.isdigit() else 0


def _keep_aside(disk: Disk, folder: str, names: list[str], kept: int) -> None:
    """The last of the files that stay will be cut in place; those behind it leave the log."""
    if kept:
        last = f"{folder}/{names[kept - 1]}"
        disk.write_whole(last + _DAMAGED, disk.read(last))
    for name in reversed(names[kept:]):
        disk.rename(f"{folder}/{name}", f"{folder}/{name}{_DAMAGED}")
    disk.sync_folder(folder)


def _cut(disk: Disk, walk: _Walk) -> int:
    if walk.torn is None:
        return 0
    file = disk.open(walk.segments[-1].path)
    try:
        torn_bytes = file.size - walk.torn.good_bytes
        file.truncate(walk.torn.good_bytes)
        file.sync()
    finally:
        file.close()
    return torn_bytes
