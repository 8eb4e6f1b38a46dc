"""The report of a drill as values; ``as_json`` is what report.json holds, and
``schema/drill-report.json`` says so to other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from imcore.checker import GROUPS
from imcore.checker.ledger import Entry
from imctl.report.model import RunReport
from services.control.predict import SHARES, time_of

VERSION = 1
SCHEMA = Path(__file__).parent / "schema" / "drill-report.json"


def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SCHEMA.read_text())
    return found


class Recovered(NamedTuple):
    """Of one lost IDC, in seconds since the fault; None: it did not happen."""

    idc: str
    affected: int
    answered: int
    steps: dict[str, float | None]


class Probed(NamedTuple):
    """A look of the steady-state hypothesis, seconds from the start of the load."""

    when: str
    t: float
    broken: str
    blind: str


class Reconnects(NamedTuple):
    """Of a switchover: points of (seconds since it was asked for, clients that had moved), as its
    plan said and as the clients felt it. ``apart``: see ``services.control.predict``."""

    idc: str
    predicted: list[tuple[float, float]]
    measured: list[tuple[float, float]]
    apart: float | None


class Found(NamedTuple):
    outcome: str
    sentence: str
    t: float | None


class Earlier(NamedTuple):
    """An earlier run of the same drill that passed."""

    run: str
    started: str
    rto_s: float | None
    moved_s: float | None


@dataclass(slots=True)
class DrillReport:
    """``run``: load, history and charts, as of the demo's runs."""

    drill: str
    title: str
    variables: dict[str, Any]
    outcome: str
    reason: str
    line: str
    run: RunReport
    findings: Sequence[Found] = ()
    recoveries: Sequence[Recovered] = ()
    ledger: dict[tuple[str, str], Entry] = field(default_factory=dict)
    looks: Sequence[Probed] = ()
    reconnects: Sequence[Reconnects] = ()
    epochs_seen: int = 0
    disputes: Sequence[str] = ()
    left: Sequence[str] = ()
    earlier: Sequence[Earlier] = ()

    @property
    def ok(self) -> bool:
        return self.outcome == "pass"

    def rto_s(self) -> float | None:
        """The worst of all losses."""
        times = [one.steps.get("99 % answered") for one in self.recoveries]
        found = [time for time in times if time is not None]
        return max(found) if found and len(found) == len(times) else None

    def moved_s(self) -> float | None:
        """The longest of all planned moves; None: there was none, or some client never moved."""
        moves = [m for m in self.run.availability.moves if m.what == "switchover"]
        times = [moved for m in moves if (moved := m.moved_us()) is not None]
        return max(times) / 1e6 if times and len(times) == len(moves) else None

    def two_writers(self) -> list[str]:
        """Examples of acks that two writers of one log gave."""
        examples = self.run.verdict.examples
        return [said for kind in GROUPS["two_writers"] for said in examples.get(kind, [])]

    def as_json(self) -> dict[str, Any]:
        return {
            "drill_report": VERSION,
            "drill": self.drill,
            "title": self.title,
            "variables": self.variables,
            "outcome": self.outcome,
            "reason": self.reason,
            "findings": [found._asdict() for found in self.findings],
            "recoveries": [one._asdict() for one in self.recoveries],
            "reconnects": [one._asdict() for one in self.reconnects],
            "ledger": [
                {
                    "from": a,
                    "to": b,
                    "sent": entry.sent,
                    "acked": entry.acked,
                    "delayed": entry.delayed,
                    "lost": entry.lost,
                    "duplicates": entry.duplicates,
                    "out_of_order": entry.out_of_order,
                    "receive": entry.latency()._asdict(),
                }
                for (a, b), entry in self.ledger.items()
            ],
            "hypothesis": [look._asdict() for look in self.looks],
            "split_brain": {
                "epochs_seen": self.epochs_seen,
                "disputes": list(self.disputes),
                "acks_placed": self.run.verdict.counts.placed,
                "two_writers": self.two_writers(),
            },
            "left": list(self.left),
            "earlier": [one._asdict() for one in self.earlier],
            "run": self.run.as_json(),
        }


# ---------------------------------------------------------------------------------- Markdown


def markdown(report: DrillReport) -> str:
    """The first line is the verdict and its reason."""
    run = report.run.subject
    parts = [
        f"{report.line}\n",
        f"# {report.title}\n",
        f"Drill `{report.drill}`, run {run.run} on {run.region}, started {run.started}, "
        f"{run.seconds:.0f} s; {run.users} clients on {run.devices} devices.\n",
    ]
    if report.findings:
        parts.append("## Findings\n")
        parts += [f"- {found.outcome}: {found.sentence}" for found in report.findings]
        parts.append("")
    parts.append(_table("Promises", ("promise", "limit", "measured", ""), promise_rows(report)))
    if report.recoveries:
        parts.append(_table("Recovery, seconds since the fault", *recovery_rows(report)))
    if report.reconnects:
        parts.append(_table(RECONNECTS, RECONNECTS_HEAD, reconnect_rows(report)))
    parts.append(_table("Ledger of canary messages", LEDGER_HEAD, ledger_rows(report)))
    parts.append(f"## Split brain\n\n{split_brain(report)}\n")
    parts.append(f"## Steady-state hypothesis\n\n{hypothesis(report)}\n")
    if report.earlier:
        parts.append(_table("Earlier runs that passed", EARLIER_HEAD, earlier_rows(report)))
    parts.append("## What happened\n")
    parts += [f"- {mark.t:.1f} s: {mark.text}" for mark in report.run.marks]
    if report.run.notes:
        parts.append("\n## Notes\n")
        parts += [f"- {note}" for note in report.run.notes]
    return "\n".join(parts) + "\n"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [f"## {title}\n", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------- rows that all forms share

RECONNECTS = "Reconnects of planned moves, seconds until a share of clients had moved"
RECONNECTS_HEAD = ("IDC", "", "clients", *(f"{share:.0%}".replace("%", " %") for share in SHARES))
LEDGER_HEAD = (
    "from", "to", "sent", "acked", "delayed", "lost", "dup", "order", "p50 ms", "p99 ms",
)  # fmt: skip
EARLIER_HEAD = ("run", "started", "RTO s", "moved s")


def promise_rows(report: DrillReport) -> list[tuple[str, str, str, str]]:
    return [
        (p.name, p.limit, p.measured, "held" if p.ok else "broken") for p in report.run.promises
    ]


def recovery_rows(report: DrillReport) -> tuple[list[str], list[list[object]]]:
    steps = list(report.recoveries[0].steps)
    rows: list[list[object]] = [
        [one.idc, one.affected, *(seconds(one.steps[step]) for step in steps)]
        for one in report.recoveries
    ]
    return ["IDC", "devices", *steps], rows


def reconnect_rows(report: DrillReport) -> list[list[object]]:
    rows: list[list[object]] = []
    for one in report.reconnects:
        for name, curve in (("predicted", one.predicted), ("measured", one.measured)):
            clients = round(curve[-1][1]) if curve else 0
            rows.append([one.idc, name, clients, *(seconds(time_of(curve, s)) for s in SHARES)])
    return rows


def ledger_rows(report: DrillReport) -> list[tuple[object, ...]]:
    return [
        (
            a, b, entry.sent, entry.acked, entry.delayed, entry.lost, entry.duplicates,
            entry.out_of_order, round(entry.latency().p50_ms), round(entry.latency().p99_ms),
        )
        for (a, b), entry in report.ledger.items()
    ]  # fmt: skip


def earlier_rows(report: DrillReport) -> list[tuple[str, str, str, str]]:
    return [(e.run, e.started, seconds(e.rto_s), seconds(e.moved_s)) for e in report.earlier]


def split_brain(report: DrillReport) -> str:
    """Whether two IDCs disagreed on an epoch, and whether a fenced writer acked."""
    epochs = (
        f"No two IDCs disagreed on the contents of any of the {report.epochs_seen} epochs seen."
    )
    placed = report.run.verdict.counts.placed
    writers = f"No two writers of a log contradict each other in the {placed} acks with a place."
    if not placed:
        writers = "No ack had a place, so it is not known whether a fenced writer acked."
    return " ".join([*(report.disputes or [epochs]), *(report.two_writers() or [writers])])


def hypothesis(report: DrillReport) -> str:
    """One sentence for each part of the run."""
    said = []
    for when in ("before", "during", "after", "restored"):
        looks = [look for look in report.looks if look.when == when]
        broken = [look for look in looks if look.broken]
        blind = [look for look in looks if look.blind]
        if not looks:
            said.append(f"{when}: not checked")
        elif broken:
            said.append(
                f"{when}: violated in {len(broken)} of {len(looks)} checks, first: "
                f"{broken[0].broken}"
            )
        elif blind:
            said.append(
                f"{when}: unknown in {len(blind)} of {len(looks)} checks, first: {blind[0].blind}"
            )
        else:
            said.append(f"{when}: held in {len(looks)} check{'s' if len(looks) > 1 else ''}")
    return "; ".join(said) + "."


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
