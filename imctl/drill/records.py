"""All runs of drills on a deployment, a JSON line each, and what a new one is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from imcore.errors import BadInput
from imctl.report.drill import DrillReport, Earlier

FILE = "history.jsonl"
COMPARED = 5
SLOWER = 1.5  # times the median of earlier runs, and
SLOWER_S = 1.0  # at least so much more


def add(runs: Path, report: DrillReport, out: Path) -> None:
    """Raises BadInput."""
    row = {
        "run": report.run.subject.run,
        "drill": report.drill,
        "started": report.run.subject.started,
        "seconds": round(report.run.subject.seconds, 1),
        "outcome": report.outcome,
        "reason": report.reason,
        "rto_s": report.rto_s(),
        "moved_s": report.moved_s(),
        "report": str(out.absolute()),
    }
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with (runs / FILE).open("a+b") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read() not in (b"", b"\n")  # by a crash: it ends before this one begins
            file.write(b"\n" * torn + json.dumps(row).encode() + b"\n")
    except OSError as error:
        raise BadInput(f"cannot write {runs / FILE}: {error.strerror}") from error


def read(runs: Path) -> list[dict[str, Any]]:
    """Oldest first; a line that was torn by a crash is left out."""
    try:
        lines = (runs / FILE).read_text().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(dict(json.loads(line)))
        except ValueError:
            continue
    return rows


def passed(runs: Path, drill: str) -> list[Earlier]:
    """The last runs of this drill that passed, newest first."""
    rows = [row for row in read(runs) if row["drill"] == drill and row["outcome"] == "pass"]
    return [
        Earlier(row["run"], row["started"], row["rto_s"], row["moved_s"])
        for row in rows[: -COMPARED - 1 : -1]
    ]


def regression(report: DrillReport) -> str:
    """A sentence when recovery or a move took much longer than in earlier runs; else empty."""
    for what, now, before in (
        ("RTO", report.rto_s(), [e.rto_s for e in report.earlier if e.rto_s is not None]),
        (
            "The move",
            report.moved_s(),
            [e.moved_s for e in report.earlier if e.moved_s is not None],
        ),
    ):
        if now is None or not before:
            continue
        usual = median(before)
        if now > max(usual * SLOWER, usual + SLOWER_S):
            return (
                f"{what} took {now:.2f} s; in {len(before)} earlier runs that passed it took "
                f"{usual:.2f} s (median)."
            )
    return ""
