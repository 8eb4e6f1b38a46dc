"""The report on a terminal, readable at 80 and at 120 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from imctl.report.model import RunReport


def show(console: Console, report: RunReport) -> None:
    console.print(summary(report))


def summary(report: RunReport) -> Group:
    parts: list[Table | Text] = [
        _promises(report),
        _totals(report),
        _latencies(report),
        _lags(report),
    ]
    for kind, lines in sorted(report.verdict.examples.items()):
        parts += [Text(f"{kind}: {line}", style="red") for line in lines[:3]]
    parts += [Text(f"note: {note}", style="yellow") for note in report.notes]
    held = "Every promise held." if report.ok else "NOT every promise held."
    parts.append(Text(held, style="bold green" if report.ok else "bold red"))
    return Group(*parts)


def _promises(report: RunReport) -> Table:
    table = Table(
        title=f"{report.subject.region}: {report.subject.victim} killed under load",
        box=box.SIMPLE,
    )
    table.add_column("promise", ratio=3, overflow="fold")
    table.add_column("limit", no_wrap=True)
    table.add_column("measured", ratio=3, overflow="fold")
    table.add_column("", no_wrap=True)
    for promise in report.promises:
        mark = Text("ok", style="green") if promise.ok else Text("NO", style="bold red")
        table.add_row(promise.name, promise.limit, promise.measured, mark)
    return table


def _totals(report: RunReport) -> Text:
    subject, counts = report.subject, report.verdict.counts
    return Text(
        f"{subject.users} clients on {subject.devices} devices, {subject.pairs} pairs "
        f"({subject.crossing} across IDCs), {len(subject.groups)} groups. "
        f"{counts.composed} messages sent, {counts.acked} acked, {counts.failed} failed, "
        f"{counts.shown} received; {counts.late} inserted late, {counts.moved} moved; "
        f"{counts.views} final views compared ({counts.logins} fresh logins)."
    )


def _latencies(report: RunReport) -> Table:
    table = Table(title="latency in ms, by the phase in which messages were sent", box=box.SIMPLE)
    table.add_column("phase", no_wrap=True)
    table.add_column("messages", justify="right", no_wrap=True)
    for what in ("ack", "recv"):
        for figure in ("p50", "p99", "max"):
            table.add_column(f"{what} {figure}", justify="right")
    for phase in report.latencies:
        latency = phase.summaries()
        table.add_row(
            phase.name,
            str(phase.composed),
            *(_ms(value) for one in latency for value in (one.p50_ms, one.p99_ms, one.max_ms)),
        )
    return table


def _lags(report: RunReport) -> Table:
    table = Table(title="replication lag in ms, including the fault", box=box.SIMPLE)
    table.add_column("from -> at", no_wrap=True)
    table.add_column("samples", justify="right", no_wrap=True)
    for figure in ("p50", "p99", "max"):
        table.add_column(figure, justify="right")
    for way, lag in report.lags().items():
        figures = (_ms(value) for value in (lag.p50_ms, lag.p99_ms, lag.max_ms))
        table.add_row(way, str(lag.samples), *figures)
    return table


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"
