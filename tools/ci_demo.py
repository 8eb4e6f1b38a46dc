"""The demo in CI, on the embedded engines and then on Kafka, TiKV's protocol and etcd: what the
history says is judged once, what the clock says up to three times.

A machine that others use too can miss a time limit, or a rate, without anything being wrong; so a
run that fails by its time alone (or could not be brought to its end) is repeated. A message that is
missing, doubled, reordered or altered fails at the first run, whatever comes after.

A repetition kills the same IDC: with another one, a fault that only this victim shows would be
counted as bad luck. On real engines the embedded demo's victim is lost, without a planned move (it
would take longer than everything else), and the last lines compare both RTOs: the limits of time on
real engines are 1.5 times the embedded limits (imctl/report/promises.py), not 1.5 times whatever
the embedded demo has just taken. The last lines also say which runs were needed and why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RUNS = 3
OUT = Path("build") / "demo"
ENGINES = "kafka,tikv,etcd"
STEADY = ["--seconds", "8"]  # before and after the loss: half of what the demo takes by itself
OUT_ENGINES = Path("build") / "demo-engines"


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


def run_all(
    imctl: Path, out: Path, flags: Sequence[str] = (), victim: str = "", name: str = "demo"
) -> int:
    """``victim``: empty: whom the first run chooses."""
    said: list[str] = []
    ok = False
    for run in range(1, RUNS + 1):
        (out / "report.json").unlink(missing_ok=True)  # an older run's must not be judged
        again_with = ["--victim", victim] if victim else []
        command = [str(imctl), "demo", "--out", str(out), *flags, *again_with]
        done = subprocess.run(command, check=False)
        victim = victim or last_victim(out)
        ok = done.returncode == 0
        outcome, again = ("every promise held", False) if ok else judged(out)
        said.append(f"  run {run} ({victim or 'no victim chosen'}): {outcome}")
        if not again:
            break
        print(f"the {name} {outcome}", flush=True)
    print(f"{name}: {'good' if ok else 'NOT good'} after {len(said)} of at most {RUNS} runs")
    print("\n".join(said), flush=True)
    return 0 if ok else 1


def rto_s(out: Path) -> float | None:
    """None: nobody came back, or there is no report."""
    report = out / "report.json"
    outages = json.loads(report.read_text())["outages"] if report.exists() else []
    found = outages[0]["rto_ms"] if outages else None
    return None if found is None else found / 1000


def run_both(imctl: Path, out: Path, on_engines: Path) -> int:
    if status := run_all(imctl, out, STEADY):
        return status
    flags = ["--engines", ENGINES, "--no-switchover", *STEADY]
    status = run_all(imctl, on_engines, flags, last_victim(out), f"demo on {ENGINES}")
    embedded, engines = rto_s(out), rto_s(on_engines)
    if embedded and engines:
        times = f"{engines / embedded:.1f} times as long"
        print(f"RTO: embedded {embedded:.2f} s, {ENGINES} {engines:.2f} s, {times}", flush=True)
    return status


def main() -> int:
    return run_both(Path(sys.executable).parent / "imctl", OUT, OUT_ENGINES)


if __name__ == "__main__":
    sys.exit(main())
