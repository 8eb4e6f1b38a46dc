"""Log lines: an object each, read as text by people, found by their trace."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from imcore.logs import FIELDS, JsonLines, as_text, parse
from imctl.logview import Shown

TRACE = "0af7651916cd43dd8448eb211c80319c"


def line(message: str, created: float = 0.0, fields: dict[str, object] | None = None) -> str:
    record = logging.LogRecord("im.test", logging.INFO, "f", 1, message, (), None)
    record.created = created
    setattr(record, FIELDS, fields or {})
    return JsonLines().format(record)


def test_a_line_is_an_object_and_a_person_reads_text():
    text = line('it said "täg"\nand more', 1.5)
    assert "\n" not in text and "täg" in text
    assert as_text(text) == '1970-01-01T00:00:01.500Z INFO im.test it said "täg"\nand more'
    assert as_text("Killed") == "Killed"
    assert as_text('{"not": "ours"}') == '{"not": "ours"}'


def test_an_error_comes_with_its_stack():
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.LogRecord("im", logging.ERROR, "f", 1, "x", (), sys.exc_info())
    found = parse(JsonLines().format(record))
    assert found is not None and "ValueError: no" in found["error"]
    assert "ValueError: no" in as_text(JsonLines().format(record))


def test_a_trace_finds_its_lines_in_the_order_of_their_time(tmp_path: Path, capsys):
    fields: dict[str, object] = {"trace_id": TRACE}
    fra = [line("third", 3.0, fields), line(f"another, with {TRACE} in its text", 2.5)]
    dub = ["Traceback", line("second", 2.0, fields), line("other", 2.0, {"trace_id": "f" * 32})]
    files = {"fra": tmp_path / "fra", "dub": tmp_path / "dub", "none": tmp_path / "none"}
    files["fra"].write_text("\n".join(fra) + "\n")
    files["dub"].write_text("\n".join(dub) + "\n")
    Shown(TRACE, False, True).end(files, 50)
    said = capsys.readouterr().out.splitlines()
    assert [one.split()[0] + one.split()[-1] for one in said] == ["dub:second", "fra:third"]
    Shown("", True, True).end({"dub": files["dub"]}, 2)
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["unit"] + " " + row["message"] for row in rows] == ["dub second", "dub other"]


def test_what_is_appended_is_shown_by_whole_lines(tmp_path: Path, capsys):
    path = tmp_path / "fra"
    path.write_text("one\n")
    shown = Shown("", False, False)
    ends = shown.end({"fra": path}, 5)
    assert capsys.readouterr().out == "one\n"
    path.write_text("one\ntwo\nthr")
    end = shown.go_on("fra", path, ends["fra"])
    assert capsys.readouterr().out == "two\n"
    path.write_text("one\ntwo\nthree\n")
    shown.go_on("fra", path, end)
    assert capsys.readouterr().out == "three\n"
