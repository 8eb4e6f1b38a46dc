"""A deployment that several tests share, and drills as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema

from imcore.runtime import SystemClock
from imctl import startup
from imctl.drill.faults import FaultBook
from imctl.report.drill import schema
from imctl.target.local import Local
from imctl.testing.lab import Edit, lab_region

ROOT = Path(__file__).resolve().parents[2]
IMCTL = Path(sys.executable).with_name("imctl")
DRILL_S = 300
COMMAND_S = 90.0


@contextmanager
def deployed(folder: Path, edit: Edit | None = None, patch: str = "") -> Iterator[Path]:
    """Three IDCs that serve, whose nodes are patched by ``patch``; the deployment's folder."""
    region = lab_region(folder, edit)
    target = Local.prepare(region, folder / "deployment", True, SystemClock())
    before = os.environ.get("PYTHONPATH")
    if patch:
        (folder / "sitecustomize.py").write_text(patch)
        os.environ["PYTHONPATH"] = str(folder)
    try:
        startup.bring_up(target, lambda name, serving: None)
    finally:
        if patch:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before
    try:
        yield target.data
    finally:
        target.look_again()
        target.stop()


def imctl(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [IMCTL, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def said_by(child: subprocess.Popen[str], timeout_s: float = DRILL_S) -> tuple[int, str]:
    out, _ = child.communicate(timeout=timeout_s)
    print(out)
    return child.returncode, out


def drill(
    data: Path, name: str, out: Path, *more: str, on_line: Callable[[str], None] = lambda line: None
) -> tuple[int, str, dict[str, Any]]:
    """Exit status, what it said, report.json."""
    child = imctl("drill", "run", name, "--data", data, "--out", out, "--yes", "--seed", "7", *more)
    assert child.stdout is not None
    lines = []
    with child.stdout:
        for line in child.stdout:
            lines.append(line)
            on_line(line)
    status = child.wait(DRILL_S)
    said = "".join(lines)
    print(said)
    assert (out / "report.json").exists(), said
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, schema())
    first = (out / "report.md").read_text().splitlines()[0]
    assert first in said and first.startswith(f"{report['outcome']}: {report['reason']}")
    return status, said, report


def until(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def status_of(data: Path) -> dict[str, Any]:
    _, out = said_by(imctl("status", "--data", data, "-o", "json"), COMMAND_S)
    found: dict[str, Any] = json.loads(out)
    return found


def assert_nothing_left(data: Path) -> None:
    assert FaultBook(data).read().faults == [] and FaultBook(data).read().run == ""
    found = status_of(data)
    states = {name: row["state"] for name, row in found["policy"]["idcs"].items()}
    assert set(states.values()) == {"active"}, states
    assert {link["mode"] for link in found["links"]} == {"pass"}
    assert all(link["as_configured"] for link in found["links"])
    assert {unit["state"] for unit in found["processes"].values()} == {"running"}
