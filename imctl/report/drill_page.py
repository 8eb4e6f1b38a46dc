"""A drill's report as one HTML page: nothing is loaded from elsewhere."""

from __future__ import annotations

from html import escape

from imctl.report import drill as rows
from imctl.report.drill import DrillReport
from imctl.report.page import charts, document, figures, subject, table


def page(report: DrillReport) -> str:
    parts = [f'<p class="soft">{escape(subject(report.run))}</p>']
    if report.findings:
        items = "".join(
            f"<li>{escape(found.outcome)}: {escape(found.sentence)}</li>"
            for found in report.findings
        )
        parts.append(f"<h2>Findings</h2><ul>{items}</ul>")
    head = ("promise", "limit", "measured", "")
    parts.append(table("Promises", head, rows.promise_rows(report)))
    if report.recoveries:
        parts.append(table("Recovery, seconds since the fault", *rows.recovery_rows(report)))
    if report.reconnects:
        parts.append(table(rows.RECONNECTS, rows.RECONNECTS_HEAD, rows.reconnect_rows(report)))
    parts.append(table("Ledger of canary messages", rows.LEDGER_HEAD, rows.ledger_rows(report)))
    parts.append(f"<h2>Split brain</h2><p>{escape(rows.split_brain(report))}</p>")
    parts.append(f"<h2>Steady-state hypothesis</h2><p>{escape(rows.hypothesis(report))}</p>")
    if report.earlier:
        parts.append(
            table("Earlier runs that passed", rows.EARLIER_HEAD, rows.earlier_rows(report))
        )
    parts += [charts(report.run), figures(report.run)]
    return document(
        f"{report.run.subject.region}: {report.title}", report.line, report.ok, "".join(parts)
    )
