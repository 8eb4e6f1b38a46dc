"""What `imctl audit` shows of lines that somebody else may have planted: a chain has no key, so
whoever can write the file can write lines that fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imcore.audit import EMPTY, Anchor, seal
from imctl import auditview, output
from imctl.options import Format

STRANGE: list[dict[str, Any]] = [
    {"at_ms": "soon"},
    {"at_ms": 1e400, "sentence": 7},
    {"at_ms": 10**30},
    {"at_ms": -(10**15)},
    {"at_ms": 5, "idc": ["fra"], "target": {}, "fault": []},
    {"fault": "fra"},
    {"torn": 7},
    {"torn": {"bytes": []}},
    {"by": {}, "user": [], "certificate": 3},
    {"sentence": "[/bold] is no markup"},
    {"sentence": "\x1b[2Jgone", "decision": "\x9b2J", "by": "\x1b[8m"},
]


@pytest.mark.parametrize("how", [Format.TABLE, Format.JSON, Format.YAML])
def test_strange_events_are_shown_as_well_as_they_can_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: Format
) -> None:
    head, data = EMPTY, b""
    for event in [*STRANGE, {"at_ms": 9, "sentence": "the last one"}]:
        line = seal(event, "fra", head)
        row = json.loads(line)
        head, data = Anchor(row["seq"], row["hash"]), data + line
    path = tmp_path / "audit.jsonl"
    path.write_bytes(data)
    chains = auditview.read({"fra": path})
    assert chains[0].verdict.problem == ""
    rows = auditview.merged(chains)
    output.emit(rows, how, lambda: auditview.table(rows))
    assert len(rows) == len(STRANGE) + 1
    out = capsys.readouterr().out
    assert "the last one" in out and "[/bold] is no markup" in out
    if how is Format.TABLE:
        assert not {"\x1b", "\x9b"} & set(out)  # a planted line steers nobody's terminal
    assert len(auditview.merged(chains, idc="fra")) == len(rows)


def test_a_break_that_names_a_planted_writer_steers_no_terminal(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(seal({"at_ms": 1}, "\x1b[2J", EMPTY))
    [chain] = auditview.read({"fra": path})
    assert "\x1b" in chain.verdict.problem
    assert "\x1b" not in auditview.sentence(auditview.judged(chain, None))
