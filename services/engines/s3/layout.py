"""Where what lies in a bucket, and which bytes of an upload its objects have. Pure.

    PREFIX uploads/UPLOAD/LIFE/START-SIZE   a chunk, both numbers in hex
    PREFIX uploads/UPLOAD/LIFE/note         what was noted when it began
    PREFIX files/SHA256                     a whole file
    PREFIX notes/SHA256/NAME                a note of it

Each beginning of an upload is another life: a chunk that was sent in an earlier one, and arrives
late, is none of this one. A chunk's key says all of it: one that arrives late, or again, changes no
other. So chunks may overlap, and what is durable are the bytes from 0 on without a gap. Those of
one upload are the same wherever they overlap, or its hash is wrong and it is thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

UPLOADS, FILES, NOTES = "uploads/", "files/", "notes/"
NOTE = "note"  # behind all chunks in the order of keys: whoever lists meets a note that is there
HEX = "0123456789abcdef"
_CHUNK = re.compile(r"([0-9a-f]{16})-([0-9a-f]{1,16})")
_UPLOAD = re.compile(r"uploads/([^/]+)/([^/]+)/([^/]+)")
_FILE = re.compile(r"files/([0-9a-f]{64})")
_NOTE = re.compile(r"notes/([0-9a-f]{64})/([^/]+)")


class Span(NamedTuple):
    start: int
    end: int


class Piece(NamedTuple):
    """Of a chunk: so many bytes after the first ``skipped`` ones."""

    span: Span
    skipped: int
    size: int


class Of(NamedTuple):
    """An object of an upload. ``span``: None for its note."""

    upload: str
    life: str
    span: Span | None


def upload_prefix(upload: str) -> str:
    return f"{UPLOADS}{upload}/"


def chunk_key(upload: str, life: str, span: Span) -> str:
    return f"{UPLOADS}{upload}/{life}/{span.start:016x}-{span.end - span.start:x}"


def note_key(upload: str, life: str) -> str:
    return f"{UPLOADS}{upload}/{life}/{NOTE}"


def file_key(sha256: str) -> str:
    return FILES + sha256


def notes_prefix(sha256: str) -> str:
    return f"{NOTES}{sha256}/"


def of_upload(key: str) -> Of | None:
    """None for what is nothing of ours."""
    found = _UPLOAD.fullmatch(key)
    if found is None:
        return None
    upload, life, name = found.groups()
    if name == NOTE:
        return Of(upload, life, None)
    chunk = _CHUNK.fullmatch(name)
    if chunk is None:
        return None
    start = int(chunk[1], 16)
    return Of(upload, life, Span(start, start + int(chunk[2], 16)))


def file_of(key: str) -> str | None:
    found = _FILE.fullmatch(key)
    return found[1] if found else None


def note_of(key: str) -> tuple[str, str] | None:
    """(SHA-256, name)"""
    found = _NOTE.fullmatch(key)
    return (found[1], found[2]) if found else None


def pieces(spans: Iterable[Span]) -> list[Piece]:
    """What to read for the bytes from 0 on, up to the first gap."""
    found: list[Piece] = []
    at = 0
    best: Span | None = None  # of the chunks that begin at or before ``at`` the one that ends last
    for span in sorted(spans):
        while best is not None and span.start > at < best.end:
            found.append(Piece(best, at - best.start, best.end - at))
            at = best.end
        if span.start > at:
            return found
        if best is None or span.end > best.end:
            best = span
    if best is not None and best.end > at:
        found.append(Piece(best, at - best.start, best.end - at))
    return found


def reach(spans: Iterable[Span]) -> int:
    """So many bytes from 0 on are there."""
    return sum(piece.size for piece in pieces(spans))
