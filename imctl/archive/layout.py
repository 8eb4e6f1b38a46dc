"""The files of an archive: what they are called, and what is written down of each. Pure.

    archive.json                               State: how far it reaches; written last of a run
    messages/day=DAY/bucket=NN/RUN.parquet     messages that were first accepted on that day (UTC)
    changes/RUN.parquet                        older ones that have changed, as they are now
    .../RUN.json                               Segment: the manifest of RUN.parquet

What no manifest names, and what belongs to a run above that of ``archive.json``, is left over by a
run that was killed: nobody reads it, and the next run deletes it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from imcore.errors import Damaged
from imcore.hlc import to_ms

STATE = "archive.json"
MESSAGES, CHANGES = "messages", "changes"
BUCKETS = 16
_FORMAT = 1


def day_of(hlc: int) -> str:
    """Of a message, by the HLC at which it was first accepted."""
    return datetime.fromtimestamp(to_ms(hlc) / 1000, UTC).date().isoformat()


def bucket_of(conversation: str) -> int:
    return zlib.crc32(conversation.encode()) % BUCKETS


def messages_folder(day: str, bucket: int) -> str:
    return f"{MESSAGES}/day={day}/bucket={bucket:02}"


def file_name(run: int, erased_by: int = 0) -> str:
    """``erased_by``: the run that has left out of it what was recalled."""
    return f"{run:06}" + (f"-{erased_by:06}" if erased_by else "") + ".parquet"


def manifest_name(run: int) -> str:
    return f"{run:06}.json"


def run_of(name: str) -> int | None:
    """Of a file or manifest; None: it is neither."""
    stem, dot, kind = name.partition(".")
    digits = stem.partition("-")[0]
    return int(digits) if dot and kind in ("parquet", "json") and digits.isdecimal() else None


@dataclass(frozen=True, slots=True)
class State:
    """``until``: every message that was accepted at or below this HLC is in the archive.
    ``erased``: the run up to which what was recalled is out of older files."""

    region: str
    run: int = 0
    until: int = 0
    erased: int = 0

    def dump(self) -> bytes:
        return _dump({"format": _FORMAT, **asdict(self)})

    @staticmethod
    def parse(text: bytes) -> State:
        """Raises Damaged."""
        document = _document(text, STATE)
        try:
            return State(
                str(document["region"]),
                int(document["run"]),
                int(document["until"]),
                int(document["erased"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{STATE} cannot be read: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Part:
    """What one origin accepted of a segment; HLCs of the first acceptance."""

    messages: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Segment:
    """The manifest of a file. ``folder`` is where both lie, below the archive. ``applied``: the
    lsns, by origin and partition, that the IDC had folded when it was read: what the file holds
    lies at or below them."""

    folder: str
    file: str
    run: int
    idc: str
    after: int
    until: int
    messages: int
    conversations: int
    size: int  # bytes
    sha256: str
    erased: int = 0  # messages of which it no longer has the content
    origins: Mapping[str, Part] = field(default_factory=dict)
    applied: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.folder.partition("/")[0]

    def dump(self) -> bytes:
        return _dump({"format": _FORMAT, **asdict(self)})

    @staticmethod
    def parse(text: bytes, name: str) -> Segment:
        """Raises Damaged."""
        document = _document(text, name)
        try:
            origins = {o: Part(**part) for o, part in document.pop("origins").items()}
            return Segment(**document, origins=origins)
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{name} cannot be read: {error!r}") from error


def _dump(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1).encode()


def _document(text: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
        found = document.pop("format")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(f"{name} cannot be read: {error!r}") from error
    if found != _FORMAT:
        raise Damaged(f"{name} has the format {found}; this version reads {_FORMAT}")
    return dict(document)
