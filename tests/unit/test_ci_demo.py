"""Which demo runs CI repeats, with a program in the demo's place."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from tools import ci_demo

GOOD = {"name": "missing", "measured": "0", "ok": True, "repeatable": False}
SLOW = {"name": "RTO", "measured": "9 s", "ok": False, "repeatable": True}
LOST = {"name": "missing", "measured": "3", "ok": False, "repeatable": False}

# Takes the next outcome off a list; remembers its victim as the demo does, and what it was asked.
STAND_IN = """#!{python}
import json, sys
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
calls = out / "calls"
number = len(calls.read_text().splitlines()) if calls.exists() else 0
victim = [] if "--victim" not in sys.argv else sys.argv[sys.argv.index("--victim") + 1]
if not victim:
    (out / "last-victim").write_text("iad\\n")
with calls.open("a") as file:
    file.write((victim or "random") + "\\n")
promises = json.loads((out / "outcomes").read_text())[number]
if promises is not None:
    outages = [{{"rto_ms": 2000 if "--engines" not in sys.argv else 3000}}]
    (out / "report.json").write_text(json.dumps({{"promises": promises, "outages": outages}}))
sys.exit(0 if promises is not None and all(promise["ok"] for promise in promises) else 1)
"""


def runs(out: Path, outcomes: list[list[dict[str, Any]] | None]) -> tuple[int, list[str]]:
    """The exit status, and by run the victim that was asked for."""
    program = out / "imctl"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (out / "outcomes").write_text(json.dumps(outcomes))
    status = ci_demo.run_all(program, out)
    return status, (out / "calls").read_text().split()


def test_a_good_run_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs(tmp_path, [[GOOD]]) == (0, ["random"])
    assert "demo: good after 1 of at most 3 runs" in capsys.readouterr().out


def test_a_limit_of_time_is_tried_again_with_the_same_victim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runs(tmp_path, [[GOOD, SLOW], [SLOW], [GOOD]]) == (0, ["random", "iad", "iad"])
    said = capsys.readouterr().out
    assert "demo: good after 3 of at most 3 runs" in said
    assert "run 1 (iad): lost nothing, but missed a limit of time or rate: RTO: 9 s" in said


def test_a_limit_of_time_that_is_missed_in_every_run_fails(tmp_path: Path) -> None:
    assert runs(tmp_path, [[SLOW]] * 3) == (1, ["random", "iad", "iad"])


def test_a_lost_message_fails_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert runs(tmp_path, [[SLOW, LOST], [GOOD]]) == (1, ["random"])
    assert "broke a promise about messages: missing: 3" in capsys.readouterr().out


def test_a_report_of_an_older_run_is_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"promises": [LOST]}))
    assert runs(tmp_path, [None, [GOOD]]) == (0, ["random", "iad"])
    assert "ended without a report" in capsys.readouterr().out


def both(
    folder: Path, embedded: list[list[dict[str, Any]] | None], engines: list[list[dict[str, Any]]]
) -> tuple[int, Path]:
    """The exit status, and the folder of the demo on engines."""
    out, on_engines = folder / "demo", folder / "demo-engines"
    for one, outcomes in ((out, embedded), (on_engines, engines)):
        one.mkdir()
        (one / "outcomes").write_text(json.dumps(outcomes))
    program = folder / "imctl"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return ci_demo.run_both(program, out, on_engines), on_engines


def test_on_engines_the_same_idc_is_lost_and_the_times_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, on_engines = both(tmp_path, [[GOOD]], [[SLOW], [GOOD]])
    assert (status, (on_engines / "calls").read_text().split()) == (0, ["iad", "iad"])
    said = capsys.readouterr().out
    assert "demo on kafka,tikv,etcd: good after 2 of at most 3 runs" in said
    assert "RTO: embedded 2.00 s, kafka,tikv,etcd 3.00 s, 1.5 times as long" in said


def test_one_demo_that_fails_is_enough(tmp_path: Path) -> None:
    assert both(tmp_path, [[GOOD]], [[LOST]])[0] == 1
    (tmp_path / "other").mkdir()
    status, on_engines = both(tmp_path / "other", [[LOST]], [[GOOD]])
    assert status == 1 and not (on_engines / "calls").exists()
