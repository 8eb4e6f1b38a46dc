"""The history file: whole lines, readable up to a torn last one, nothing else forgiven."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore import history as h
from imcore.checker import check_file
from imcore.errors import BadInput

HEADER = h.Header(h.VERSION, "2025-01-01T00:00:00Z", "three-idc", "r1")
ONE_OF_EACH: list[h.Event] = [
    h.Device(1, 0, "ann", "phone"),
    h.Conversation(2, 0, "g:1"),
    h.Member(3, 0, "ann", True),
    h.Compose(4, 0, 0, "1-ab", 0),
    h.Ack(5, 0, "1-ab", "stored"),
    h.SendFailed(6, 0, "2-cd", 'a "quoted"\nreason'),
    h.Shown(7, 0, 0, "1-ab", 0, True),
    h.Shown(7, 0, 0, 'a "quoted"\n\u00e9', 0, False),
    h.Moved(8, 0, 0, "1-ab", 0, 0),
    h.Cursor(9, 0, 0, "1-ab", "bob"),
    h.Connection(10, 0, "fra", "fra-gw-1"),
    h.Phase(11, "steady"),
    h.Fault(12, "fra", "kill"),
    h.Quiet(13, ["fra", "iad"]),
    h.Login(14, 0, "ann", "fra", "final"),
    h.View(15, 0, 0, ["1-ab"]),
    h.Closed(16, 0),
    h.Change(17, 0, 0, "1-ab", 0, "edit", "3-ef"),
    h.ChangeDone(18, 0),
    h.Says(19, 0, 0, "1-ab", "3-ef", ["+1 bob"]),
    h.ViewSays(20, 0, 0, "1-ab", "", []),
    h.Word(21, 0, 1, "role", "g:1 ann", "admin"),
    h.WordDone(22, 1),
    h.Stands(23, 0, "role", "g:1 ann", "admin"),
]


def written(path: Path, events: list[h.Event]) -> Path:
    writer = h.HistoryWriter(path, HEADER)
    for event in events:
        writer.write(event)
    writer.close()
    writer.close()
    return path


def test_every_kind_comes_back_as_it_was(tmp_path: Path) -> None:
    header, events = h.read_history(written(tmp_path / "new" / "h.jsonl", ONE_OF_EACH))
    assert header == HEADER
    assert list(events) == ONE_OF_EACH


@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path / "h.jsonl", ONE_OF_EACH)
    os.truncate(path, path.stat().st_size - cut)
    torn: list[int] = []
    _, events = h.read_history(path, on_torn=lambda: torn.append(1))
    assert list(events) == ONE_OF_EACH[:-1]
    assert torn == [1]
    assert check_file(path).torn


@pytest.mark.parametrize("rubbish", [b"{\n", b"[]\n", b'["shown",1]\n', b'["else",1]\n', b"\xff\n"])
def test_rubbish_before_the_end_is_refused_with_its_line(tmp_path: Path, rubbish: bytes) -> None:
    path = written(tmp_path / "h.jsonl", ONE_OF_EACH)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], rubbish, *lines[4:]]))
    _, events = h.read_history(path)
    with pytest.raises(BadInput, match=r"h\.jsonl:5: "):
        list(events)


@pytest.mark.parametrize(
    "line",
    [
        h.Shown(7, 9, 0, "1-ab", 0, True),
        h.Ack(7, 0, "never-composed", "stored"),
        h.Compose(7, 0, 0, "1-ab", 0),
        h.Compose(7, 0, 0, "2-ab", 5),
        h.Compose(7, 0, 3, "2-ab", 0),
    ],
)
def test_a_line_that_makes_no_sense_where_it_stands_is_refused(
    tmp_path: Path, line: h.Event
) -> None:
    path = written(tmp_path / "h.jsonl", [*ONE_OF_EACH[:5], line])
    with pytest.raises(BadInput, match=r"h\.jsonl"):
        check_file(path)


def test_no_header_no_history(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    with pytest.raises(BadInput, match="cannot read"):
        h.read_history(path)
    path.write_text('["device",1,0,"ann","phone"]\n')
    with pytest.raises(BadInput, match="header"):
        h.read_history(path)
    path.write_text('{"history": 2, "started": "", "region": "", "run": ""}\n')
    with pytest.raises(BadInput, match="version 2"):
        h.read_history(path)
    with pytest.raises(BadInput, match="cannot write"):
        h.HistoryWriter(path / "under" / "a-file", HEADER)


def test_what_was_flushed_survives_a_kill_of_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    program = f"""
import os, signal
from pathlib import Path
from imcore import history as h
writer = h.HistoryWriter(Path({str(path)!r}), h.Header(1, "", "", ""))
for number in range(1000):
    writer.write(h.Phase(number, "flushed"))
writer.flush()
writer.write(h.Phase(1000, "only buffered"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    _, events = h.read_history(path)
    assert len(list(events)) == 1000


@given(st.integers(0, 10**9), st.text())
def test_a_tag_names_its_content(number: int, body: str) -> None:
    body = body.encode("utf-8", "ignore").decode()
    tag, content = h.seal(number, body)
    assert h.tag_of(content) == tag
    assert h.tag_of(content + b"x") != tag


@given(st.binary())
def test_any_bytes_give_a_tag(content: bytes) -> None:
    assert "-" in h.tag_of(content)


def test_nothing_is_written_behind_what_a_full_disk_has_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    writer = h.HistoryWriter(path, HEADER)
    writer.flush()

    def full(fd: int, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.write(ONE_OF_EACH[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            writer.flush()
    writer.write(ONE_OF_EACH[1])
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            writer.flush()
    assert len(path.read_text().splitlines()) == 1
