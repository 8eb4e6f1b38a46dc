"""The audit chain: lines that only ever follow each other, each sealed over all before it.

A line is one JSON object: ``seq`` (from 1) and ``writer`` first, then the event, then ``hash``:
SHA-256 over the hash of the line before (64 zeros before the first) and the bytes of this line up
to ``,"hash":``. So no line can be changed, taken out or moved without a break behind it. The end
can be cut off, and the whole be written anew: against those, the head is kept elsewhere too
(``Anchor``; ``services.control.anchoring`` keeps it in the registers).

A crash may tear the last line. Its bytes stay; the line behind them is a ``torn`` event that says
how many bytes they are, and their hash.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

NOTHING = "0" * 64
SUFFIX = b',"hash":"'
HASH_BYTES = 64  # as hex digits
OWN_FIELDS = ("seq", "writer", "hash")
LEVELS_MAX = 32  # what is nested deeper could be read, and not be shown any more
# No line has such an escape: text stands as it is, and half a surrogate could not be shown.
_SURROGATE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[dD][89a-fA-F]")


class Anchor(NamedTuple):
    """The last line of a chain, as it was once seen."""

    seq: int
    hash: str

    def to_json(self) -> bytes:
        return json.dumps(self._asdict()).encode()


EMPTY = Anchor(0, NOTHING)


def anchor_from_json(data: bytes) -> Anchor:
    """Raises ValueError."""
    try:
        row = json.loads(data)
        seq, sealed = row["seq"], row["hash"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("not an anchor of an audit chain") from error
    if type(seq) is not int or seq < 0 or not isinstance(sealed, str):
        raise ValueError("not an anchor of an audit chain")
    return Anchor(seq, sealed)


def seal(event: Mapping[str, Any], writer: str, head: Anchor) -> bytes:
    """The line for this event behind ``head``, with its newline. Raises ValueError for an event
    with a field that a line has of its own, or that could not be read back."""
    if taken := [name for name in OWN_FIELDS if name in event]:
        raise ValueError(f"an audit event cannot have a field {taken[0]!r}")
    if not _shallow(event):
        raise ValueError(f"an audit event cannot be nested more than {LEVELS_MAX} deep")
    row = {"seq": head.seq + 1, "writer": writer, **event}
    try:
        body = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()[:-1]
    except TypeError as error:
        raise ValueError(f"an audit event is JSON: {error}") from error
    return body + SUFFIX + _hash(head.hash, body).encode() + b'"}\n'


def _shallow(value: Any, levels: int = LEVELS_MAX) -> bool:
    if not isinstance(value, (dict, list, tuple)):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_shallow(each, levels - 1) for each in inner)


def _hash(before: str, body: bytes) -> str:
    return hashlib.sha256(before.encode() + body).hexdigest()


class Line(NamedTuple):
    row: dict[str, Any]
    body: bytes

    @property
    def anchor(self) -> Anchor:
        return Anchor(self.row["seq"], self.row["hash"])

    def follows(self, head: Anchor) -> bool:
        return self.anchor == Anchor(head.seq + 1, _hash(head.hash, self.body))


def parse(raw: bytes) -> Line | None:
    """A line without its newline; None when it is none, whatever somebody has put in the file.
    Whether it is true, only its place says."""
    end = len(raw) - HASH_BYTES - 2
    body, suffix = raw[: end - len(SUFFIX)], raw[end - len(SUFFIX) : end]
    if end < len(SUFFIX) or suffix != SUFFIX or _SURROGATE.search(raw):
        return None
    try:
        row = json.loads(raw.decode())  # of bytes it would take surrogates
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _shallow(row):
        return None
    sealed = (
        raw[end:-2] == str(row.get("hash")).encode()
    )  # else the suffix is that of something within
    numbered = type(row.get("seq")) is int  # a bool is one to isinstance
    return Line(row, body) if sealed and numbered and isinstance(row.get("writer"), str) else None


def torn(raw: bytes) -> dict[str, Any]:
    """The event that notes a line of which a crash left only this."""
    return {"torn": {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}}


class Judged(Protocol):
    """What ``against`` asks of a chain without a break."""

    @property
    def head(self) -> Anchor: ...
    @property
    def behind(self) -> Anchor: ...
    def hash_of(self, seq: int) -> str:
        """Of an event behind ``behind``, up to ``head``."""
        ...


class Verdict(NamedTuple):
    """What a chain is found to be. ``problem``: the first break in one sentence, or empty."""

    rows: list[dict[str, Any]]  # behind ``behind``, up to the first break
    head: Anchor
    problem: str = ""
    tail: bytes = b""  # a last line without its end: a writer at work, a crash, or a cut
    torn: int = 0  # torn lines that are noted as such
    behind: Anchor = EMPTY  # where what was judged begins

    def hash_of(self, seq: int) -> str:
        return str(self.rows[seq - self.behind.seq - 1]["hash"])  # each event is at its place


def verify(
    data: bytes, writer: str, anchor: Anchor | None = None, behind: Anchor = EMPTY, before: int = 0
) -> Verdict:
    """Judge a whole file. ``anchor``: a line that this chain is known to have had. ``behind``: the
    line in front of ``data``, where that is the end of a chain and the rest was judged before;
    ``before``: how many lines those were, torn ones too."""
    *lines, tail = data.split(b"\n")
    found = _walk(lines, writer, behind, before)
    if not found.problem and tail:
        last = parse(tail)  # only its newline is missing
        if last is not None and last.follows(found.head) and last.row["writer"] == writer:
            found = found._replace(rows=[*found.rows, last.row], head=last.anchor)
        else:
            found = found._replace(tail=tail)
    if found.problem or anchor is None:
        return found
    return found._replace(problem=against(found, anchor))


def _walk(lines: list[bytes], writer: str, behind: Anchor, before: int) -> Verdict:
    rows: list[dict[str, Any]] = []
    head, noted, at = behind, 0, 0
    while at < len(lines):
        line = parse(lines[at])
        if line is None or not line.follows(head):
            note = _noted(lines, at, head)
            if note is None:
                problem = _break(before + at + 1, line, head, lines[at + 1 :])
                return Verdict(rows, head, problem, torn=noted, behind=behind)
            noted, at = noted + 1, note
            line = parse(lines[at])
        assert line is not None
        if line.row["writer"] != writer:
            told = f"line {before + at + 1} is by {line.row['writer']}, in the file of {writer}"
            return Verdict(rows, head, f"another's file: {told}", torn=noted, behind=behind)
        rows.append(line.row)
        head = line.anchor
        at += 1
    return Verdict(rows, head, torn=noted, behind=behind)


def _noted(lines: list[bytes], at: int, head: Anchor) -> int | None:
    """Where the line stands that notes what begins at ``at`` as torn. That may be several lines:
    noting it may have been torn too."""
    for behind in range(at + 1, len(lines)):
        line = parse(lines[behind])
        if line is not None and line.follows(head):
            raw = b"\n".join(lines[at:behind])
            return behind if line.row.get("torn") == torn(raw)["torn"] else None
    return None


def _break(number: int, line: Line | None, head: Anchor, behind: list[bytes]) -> str:
    """Why line ``number`` does not follow. ``behind``: the lines after it."""
    if line is None:
        return f"edited: line {number} is no line of an audit log"
    seq, due = line.row["seq"], head.seq + 1
    if seq == due:
        return f"edited: line {number} (event {seq}) does not fit its hash, or what is before it"
    if seq < due:
        return f"reordered: event {seq} stands in line {number}, behind event {head.seq}"
    later = map(parse, behind)
    if any(other is not None and other.row["seq"] == due for other in later):
        return f"reordered: event {seq} stands in line {number}, before event {due}"
    missing = f"event {due} is" if seq == due + 1 else f"events {due} to {seq - 1} are"
    return f"removed: {missing} missing before line {number}"


def against(found: Judged, anchor: Anchor) -> str:
    """What is wrong with a chain without a break that once had this line; empty: nothing."""
    if anchor.seq > found.head.seq:
        return (
            f"truncated: it ends at event {found.head.seq}, "
            f"but the registries know event {anchor.seq}"
        )
    if anchor.seq < found.behind.seq:
        return f"not judged: event {anchor.seq} stands before what was looked at"
    kept = found.behind.hash if anchor.seq == found.behind.seq else found.hash_of(anchor.seq)
    if kept != anchor.hash:
        return f"rewritten: event {anchor.seq} is not the one that the registries know"
    return ""
