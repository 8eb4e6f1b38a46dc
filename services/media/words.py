"""What an IDC notes of files and uploads, and how a range is read. Pure."""

from __future__ import annotations

import json
import re
from typing import NamedTuple, Self

from pydantic import TypeAdapter

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Record(NamedTuple):
    """What an upload left under its key. ``uid``: who uploaded it."""

    uid: str
    size: int
    type: str

    def to_json(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises ValueError."""
        return cls(*_RECORD.validate_json(data, strict=True))


class Upload(NamedTuple):
    """One under way. ``uid``: empty for a copy that is fetched from another IDC. ``began_ms``: on
    the wall clock."""

    uid: str
    sha256: str
    size: int
    type: str
    began_ms: int

    def to_json(self) -> bytes:
        return json.dumps(self._asdict()).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises ValueError."""
        return cls(*_UPLOAD.validate_json(data, strict=True))


_RECORD = TypeAdapter(Record)
_UPLOAD = TypeAdapter(Upload)


class Picture(NamedTuple):
    """Pixels as it is shown, and its dhash (``services.media.picture``); all 0: none that can be
    shown."""

    width: int
    height: int
    dhash: int

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises ValueError."""
        return cls(*_PICTURE.validate_json(data, strict=True))

    def to_name(self) -> str:
        return f"{self.width}.{self.height}.{self.dhash:016x}"

    @classmethod
    def from_name(cls, name: str) -> Self:
        """Raises ValueError."""
        width, height, dhash = name.split(".")
        return cls(int(width), int(height), int(dhash, 16))


_PICTURE = TypeAdapter(Picture)
NO_PICTURE = Picture(0, 0, 0)


class Looked(NamedTuple):
    picture: Picture
    thumbnail: bytes  # a JPEG


def distance(one: int, other: int) -> int:
    """In how many of 64 bits two dhashes differ."""
    return (one ^ other).bit_count()


class Span(NamedTuple):
    """Bytes from ``start`` to before ``end``. ``partial``: a range was asked for."""

    start: int
    end: int
    partial: bool


def span_of(header: str, size: int) -> Span | None:
    """What the header ``Range`` asks for of a file of this size. None: nothing of it is there. A
    header of another form, also of several ranges, asks for all of it, as HTTP allows."""
    whole = Span(0, size, False)
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return whole
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        return Span(size - length, size, True) if length else None
    start, end = int(first), int(last) + 1 if last else size
    if end <= start and last:
        return whole
    return Span(start, min(end, size), True) if start < size else None
