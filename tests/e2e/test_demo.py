"""The demo as a user runs it, small: a killed IDC loses nothing; Ctrl-C leaves nothing running.

Limits of time and rate are printed, and judged by the demo at full size; here a miss of one of them
says only that the machine was busy."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imctl.target import process, runfile
from imctl.testing.lab import lab_region

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
IMCTL = Path(sys.executable).with_name("imctl")
SMALL = ("--clients", "24", "--rate", "30", "--seconds", "3", "--seed", "7")


@pytest.fixture
def region(tmp_path: Path) -> Path:
    return lab_region(tmp_path)


@pytest.mark.nightly  # CI runs the demo itself
def test_a_small_demo_keeps_every_message(region: Path, tmp_path: Path, figures) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [IMCTL, "demo", "--region", region, "--out", out, "--victim", "iad", *SMALL],
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    print(done.stdout, done.stderr)
    report = json.loads((out / "report.json").read_text())
    for promise in report["promises"]:
        kept = "" if promise["ok"] else ", missed"
        figures(promise["name"], f"{promise['measured']} (limit {promise['limit']}{kept})")
    missed = [promise for promise in report["promises"] if not promise["ok"]]
    assert all(promise["repeatable"] for promise in missed), done.stdout + done.stderr
    assert report["ok"] == (not missed) and report["subject"]["victim"] == "iad"
    assert done.returncode == (1 if missed else 0), done.stderr
    assert ("NOT every promise held." if missed else "Every promise held.") in done.stdout
    assert set(report["check"]["totals"].values()) == {0}
    assert report["check"]["counts"]["acked"] > 500
    assert report["outages"][0]["affected"] > 5 and report["rpo"]["lost"] == 0
    assert (out / "report.html").stat().st_size > 20_000
    checked = subprocess.run(
        [IMCTL, "check", out / "history.jsonl"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert bool(list(out.glob("data-*"))) == bool(missed)  # a good run leaves its report only


@pytest.mark.parametrize(
    "how", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_an_interrupt_leaves_nothing_running(
    region: Path, tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    child = subprocess.Popen(
        [IMCTL, "demo", "--region", region, "--out", out, *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "before: load" in line:
            break
    (data,) = out.glob("data-*")
    started = runfile.read(data)
    assert started is not None and len(started.processes) == 4
    child.send_signal(how)
    with child.stdout:
        rest = child.stdout.read()
    assert child.wait(timeout=120) not in (0, 1), rest
    assert "Traceback" not in rest
    states = {name: process.state(one) for name, one in started.processes.items()}
    assert set(states.values()) == {"gone"}, states
