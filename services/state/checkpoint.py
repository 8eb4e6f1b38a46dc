"""Sessions on disk, so that a restarted process finds those that are within their grace.

Losing the file costs resumes, not messages: a damaged one counts as none. What was pushed after
the checkpoint is not in it, so a client always syncs after it has connected.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imcore.words import parse_origin
from services.state.session import Owed, Record

log = logging.getLogger("im.state")


_CHUNK = 100  # sessions written down between two turns of the loop


class Checkpoint:
    """The file at ``path``. A save may be cut short by a restart or the end, whose own comes while
    the first is still being written: of two, that which was begun later stands."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._begun = 0
        self._written = 0

    async def save(self, records: Sequence[Record]) -> None:
        """Atomic: a crash leaves the former file or the new one. A full disk is only logged."""
        self._begun += 1
        number = self._begun
        data = [json.dumps({"format": 1, "sessions": len(records)}).encode()]
        for start in range(0, len(records), _CHUNK):
            data += [line(record) for record in records[start : start + _CHUNK]]
            await asyncio.sleep(0)
        try:
            await asyncio.to_thread(self._write, number, b"\n".join(data))
        except OSError as error:
            log.warning("the session checkpoint was not written: %s", error)

    def _write(self, number: int, data: bytes) -> None:
        with self._writing:
            if number < self._written:
                return
            fresh = self._path.with_suffix(".new")
            fresh.write_bytes(data)
            os.replace(fresh, self._path)
            self._written = number


def line(record: Record) -> bytes:
    row = {
        "id": record.id,
        "uid": record.uid,
        "device": record.device,
        "epoch": record.connection_epoch,
        "kind": record.kind,
        "since": record.since_hlc,
        "shard": record.shard,
        "seen": record.seen_hlc,
        "unpacks": record.unpacks,
        "lsns": record.lsns,
        "unreplicated": record.unreplicated,
        "owed": {
            name: {str(origin): seq for origin, seq in owed.heads.items()}
            for name, owed in record.owed.items()
        },
    }
    return json.dumps(row).encode()


def load(path: Path, now: float) -> list[Record]:
    """The sessions, none of them connected."""
    try:
        first, *rows = path.read_bytes().split(b"\n")
        count = json.loads(first)["sessions"]
        if count != len(rows):
            raise ValueError(f"{len(rows)} sessions of {count}")
        return [_record(json.loads(row), now) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, LookupError, ValueError, TypeError, AttributeError, OverflowError,
            RecursionError) as error:  # fmt: skip
        log.warning("the session checkpoint %s is not usable, starting without: %s", path, error)
        return []


def _record(row: dict[str, Any], now: float) -> Record:
    record = Record(
        str(row["id"]), str(row["uid"]), str(row["device"]), int(row["epoch"]), "", 0
    )  # fmt: skip
    record.shard, record.seen_hlc = str(row["shard"]), int(row["seen"])
    record.kind = str(row.get("kind", ""))  # older files have none
    record.since_hlc = int(row.get("since", 0))  # nor that
    record.unpacks = row.get("unpacks") is True  # nor that
    record.lsns = _by_partition(row["lsns"])
    record.unreplicated = _by_partition(row.get("unreplicated", {}))  # nor these
    for name, heads in row["owed"].items():
        vector = {parse_origin(origin): int(seq) for origin, seq in heads.items()}
        record.owed[str(name)] = Owed(vector, now)
    return record


def _by_partition(row: dict[str, Any]) -> dict[int, int]:
    return {int(partition): int(lsn) for partition, lsn in row.items()}
