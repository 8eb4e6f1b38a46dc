"""The history of a run. Any file is either judged or refused with BadInput; what stands before a
bad line is read as if that line were not there."""

from __future__ import annotations

import contextlib

from fuzz.lab import folder
from fuzz.target import Target
from imcore import history as h
from imcore.checker import check_file
from imcore.errors import BadInput

_FILE = folder("history") / "history.jsonl"


def check(data: bytes) -> None:
    _FILE.write_bytes(data)
    read = _read()
    with contextlib.suppress(BadInput):
        check_file(_FILE)
    cut = data.rfind(b"\n", 0, len(data) // 2) + 1
    _FILE.write_bytes(data[:cut])
    before = _read()
    assert read[: len(before)] == before, "what follows has changed what was read before"


def _read() -> list[h.Event]:
    events: list[h.Event] = []
    with contextlib.suppress(BadInput):
        events.extend(h.read_history(_FILE)[1])  # those before an error count
    return events


def seeds() -> list[bytes]:
    path = _FILE.with_name("seed.jsonl")
    writer = h.HistoryWriter(path, h.Header(started="2026-01-01T00:00:00Z", region="r", run="x"))
    tag, _ = h.seal(1, "hello")
    for event in (
        h.Device(1, 0, "ann", "phone"), h.Device(1, 1, "bob", "phone"),
        h.Conversation(2, 0, "d:ann:bob"), h.Conversation(2, 1, "g:all"),
        h.Member(3, 1, "ann", True), h.Phase(3, "before"), h.Connection(3, 0, "fra", "fra-gw-1"),
        h.Compose(4, 0, 0, tag, 0), h.Shown(5, 0, 0, tag, 0, False), h.Ack(6, 0, tag, "stored"),
        h.Shown(7, 1, 0, tag, 0, True), h.Moved(8, 1, 0, tag, 0, 0), h.Cursor(9, 1, 0, tag, "bob"),
        h.Fault(10, "fra", "kill"), h.Member(11, 1, "ann", False), h.SendFailed(12, 0, "9-x", "no"),
        h.Closed(13, 1), h.Policy(13, "fra", 2, "a1b2"), h.Replica(14, "fra", "a1b2"),
        h.Quiet(14, ["fra", "iad"]), h.Looking(14, 2, "iad"), h.Login(15, 2, "bob", "iad", "final"),
        h.View(16, 2, 0, [tag]),
    ):  # fmt: skip
        writer.write(event)
    writer.close()
    return [path.read_bytes()]


WORDS = [b"null", b"true", b"-1", b"1e9", b"NaN", b"[", b"{}", b'""', b'"view"', b'"moved"', b"\n"]
TARGET = Target("history", check, seeds, words=WORDS)
