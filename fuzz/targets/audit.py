"""An audit log that somebody has written into. Whatever stands there: it is judged, with a sentence
where it is broken, and shown; a decision is noted behind it, and then stands there; and a head of
it that is kept in a register is one, or no value at all.

The first byte says where the known line stands that the rest is put behind."""

from __future__ import annotations

import contextlib
import json

from fuzz.lab import folder
from fuzz.target import Target
from imcore import auditfile
from imcore.audit import EMPTY, Anchor, anchor_from_json, parse, seal, verify
from imctl import auditview
from imctl.audit import writer_of

_FILE = folder("audit") / auditfile.FILE
WRITER = "fra"
EVENTS = (
    {"at_ms": 1_700_000_000_000, "kind": "drain", "idc": "fra", "sentence": "drain of fra"},
    {"at_ms": 1_700_000_000_005, "fault": "fra", "outcome": "done", "sentence": "killed"},
    {"torn": {"bytes": 7, "sha256": "00" * 32}},
)


def _chain() -> tuple[bytes, Anchor]:
    data, head = b"", EMPTY
    for event in EVENTS:
        line = seal(event, WRITER, head)
        parsed = parse(line.rstrip())
        assert parsed is not None
        data, head = data + line, parsed.anchor
    return data, head


CHAIN, HEAD = _chain()


def check(data: bytes) -> None:
    before, planted = (CHAIN, data[1:]) if data[:1] == b"\1" else (b"", data[1:])
    _FILE.write_bytes(before + planted)
    found = verify(before + planted, WRITER, HEAD if before else None)
    assert found.head.seq == len(found.rows)
    assert len(found.rows) >= len(EVENTS) or not before, "what stood before is not found any more"
    writer_of(_FILE)
    chains = auditview.read({WRITER: _FILE})
    for row in auditview.merged(chains):
        auditview.shown(row)
        json.dumps(row, indent=2, ensure_ascii=False).encode()
    auditview.sentence(auditview.judged(chains[0], None))
    auditfile.append(_FILE, WRITER, EVENTS[0])
    raw = auditfile.read(_FILE)
    last = parse(raw.rstrip(b"\n").rpartition(b"\n")[2])
    assert last is not None
    assert {name: last.row[name] for name in EVENTS[0]} == EVENTS[0]
    with contextlib.suppress(ValueError):
        anchor_from_json(planted)


def seeds() -> list[bytes]:
    lines = CHAIN.splitlines(keepends=True)
    behind = seal(EVENTS[0], WRITER, HEAD)
    return [
        b"\0", b"\0" + CHAIN, b"\1" + behind, b"\1" + behind[:-1], b"\1" + behind[:40],
        b"\1" + lines[1], b"\0" + lines[0] + lines[2], b"\0" + HEAD.to_json(),
        b'\1[{"seq":4,"hash":"' + b"0" * 63 + b'"}]\n',
        b'\1{"seq":4,"writer":"fra","a":{"b":1,"hash":"' + b"0" * 63 + b'"}}\n',
    ]  # fmt: skip


WORDS = [
    b'"seq":', b'"writer":', b',"hash":"', b'"}\n', b"null", b"true", b"-1", b"1e400", b"[[[[[[[[",
    b"{}", b'""', b'"fra"', b'"torn":', b'"at_ms":', b'"fault":', b"\\ud800", b"\n", b"\x00",
]  # fmt: skip
TARGET = Target("audit", check, seeds, words=WORDS)
