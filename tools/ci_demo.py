"""The demo in CI, on the embedded engines and then on Kafka, MirrorMaker 2, TiKV and etcd: what the
history says is judged once, what the clock says up to three times.

A machine that others use too can miss a time limit, or a rate, without anything being wrong; so a
run that fails by its time alone (or could not be brought to its end) is repeated. A message that is
missing, doubled, reordered or altered fails at the first run, whatever comes after.

A repetition kills the same IDC: with another one, a fault that only this victim shows would be
counted as bad luck. The last lines say which runs were needed and why. Which IDC is killed first is
the demo's choice: another one each time, by itself for each kind of engine.

Where an engine is missing the second demo is left out with one line; with CI=true that fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from imctl.engines.binaries import missing
from imctl.target.engines import chosen, programs

RUNS = 3
OUT = Path("build")


class Demo(NamedTuple):
    """``engines``: as `--engines` takes them; none: the embedded ones."""

    name: str
    engines: str = ""


DEMOS = [Demo("demo"), Demo("demo-engines", "kafka,tikv,etcd")]


def broken(promises: list[dict[str, Any]]) -> list[str]:
    """What was not held and no busy machine can be blamed for."""
    return _missed(promises, repeatable=False)


def _missed(promises: list[dict[str, Any]], repeatable: bool) -> list[str]:
    missed = [p for p in promises if not p["ok"] and p["repeatable"] == repeatable]
    return [f"{promise['name']}: {promise['measured']}" for promise in missed]


def last_victim(out: Path) -> str:
    """Whom the demo chose, which it writes down before it starts anything."""
    memory = out / "last-victim"
    return memory.read_text().strip() if memory.exists() else ""


def judged(out: Path) -> tuple[str, bool]:
    """Why the run failed, and whether that is worth another run. A report that is not there is: the
    demo itself has said on the screen why it could not write one."""
    report = out / "report.json"
    if not report.exists():
        return "ended without a report (why stands above)", True
    promises = json.loads(report.read_text())["promises"]
    if found := broken(promises):
        return f"broke a promise about messages: {'; '.join(found)}", False
    missed = "; ".join(_missed(promises, repeatable=True))
    return f"lost nothing, but missed a limit of time or rate: {missed}", True


def run_all(imctl: Path, out: Path, demo: Demo = DEMOS[0]) -> int:
    said: list[str] = []
    victim = ""
    ok = False
    on_engines = ["--engines", demo.engines] if demo.engines else []
    for run in range(1, RUNS + 1):
        (out / "report.json").unlink(missing_ok=True)  # an older run's must not be judged
        again_with = ["--victim", victim] if victim else []
        command = [str(imctl), "demo", "--out", str(out), *on_engines, *again_with]
        done = subprocess.run(command, check=False)
        victim = victim or last_victim(out)
        ok = done.returncode == 0
        outcome, again = ("every promise held", False) if ok else judged(out)
        said.append(f"  run {run} ({victim or 'no victim chosen'}): {outcome}")
        if not again:
            break
        print(f"the {demo.name} {outcome}", flush=True)
    print(f"{demo.name}: {'good' if ok else 'NOT good'} after {len(said)} of at most {RUNS} runs")
    print("\n".join(said), flush=True)
    return 0 if ok else 1


def left_out(demo: Demo) -> int | None:
    """The exit status of a demo whose engines are not all here; None: they are."""
    lacking = missing(programs(chosen(demo.engines)))
    if not lacking:
        return None
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        print(f"{demo.name}: left out: {lacking}", flush=True)
        return 0
    print(f"{demo.name}: NOT good: CI must run it, but {lacking}", flush=True)
    return 1


def main() -> int:
    """Every demo is run, whatever became of the one before it."""
    imctl = Path(sys.executable).parent / "imctl"
    found = []
    for demo in DEMOS:
        status = left_out(demo)
        found.append(run_all(imctl, OUT / demo.name, demo) if status is None else status)
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
