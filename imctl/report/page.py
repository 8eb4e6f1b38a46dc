"""The report as one HTML page: nothing is loaded from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from imctl.report.charts import Axis, Line, chart, lanes
from imctl.report.model import RunReport, write_text
from services.loadgen.stats import Sample

IDC_COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")

STYLE = """
:root { color-scheme: light dark; --bg:#ffffff; --fg:#1d2129; --soft:#5d6673; --grid:#e3e6ea;
  --shade:#f4f6f8; --ok:#1a7f43; --bad:#c62828; --mark:#8a3ffc;
  --c1:#1f6fd6; --c2:#c25700; --c3:#1a8a5a; --c4:#8a3ffc; --c5:#b0187b; --c6:#5d6673; }
@media (prefers-color-scheme: dark) { :root { --bg:#14171c; --fg:#e6e9ee; --soft:#9aa4b2;
  --grid:#2b313a; --shade:#1b2027; --ok:#5bd08a; --bad:#ff7b72; --mark:#be95ff;
  --c1:#6cb0ff; --c2:#ffa657; --c3:#56d4a0; --c4:#be95ff; --c5:#ff7ec5; --c6:#9aa4b2; } }
* { box-sizing: border-box; }
body { margin:0 auto; padding:24px; max-width:1080px; background:var(--bg); color:var(--fg);
  font:15px/1.5 system-ui, sans-serif; }
h1 { font-size:24px; margin:0 0 4px; } h2 { font-size:17px; margin:28px 0 6px; }
p { margin:4px 0; } .soft { color:var(--soft); }
.verdict { font-weight:600; } .ok { color:var(--ok); } .bad { color:var(--bad); }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:4px 10px 4px 0; border-bottom:1px solid var(--grid); }
th { color:var(--soft); font-weight:500; } td.n, th.n { text-align:right; }
.wide { overflow-x:auto; }
svg.chart { width:100%; height:auto; display:block; }
.grid { stroke:var(--grid); } .span { fill:var(--shade); }
.tick { fill:var(--soft); font-size:11px; } .label { fill:var(--bg); font-size:11px; }
.line { fill:none; stroke-width:1.8; stroke-linejoin:round; }
.mark line { stroke:var(--mark); stroke-dasharray:4 3; }
.mark text { fill:var(--mark); font-size:10px; }
.keys { font-size:13px; margin-left:56px; } .key { margin-right:16px; }
.key i { display:inline-block; width:14px; height:3px; margin-right:5px; vertical-align:middle; }
.unit { color:var(--soft); float:right; }
.state { fill:var(--c6); } .s-active { fill:var(--ok); } .s-failed, .s-down { fill:var(--bad); }
.s-recovering { fill:var(--c2); } .s-draining, .s-drained, .s-cordoned { fill:var(--c4); }
ol { padding-left:22px; margin:4px 0; }
"""


def write_page(report: RunReport, path: Path) -> None:
    """Raises BadInput."""
    write_text(path, page(report))


def page(report: RunReport) -> str:
    held = "Every promise held." if report.ok else "Not every promise held."
    title = f"{report.subject.region}: {report.subject.victim} killed under load"
    body = (
        f'<p class="soft">{escape(subject(report))}</p>'
        f"{promises(report)}{charts(report)}{figures(report)}"
    )
    return document(title, held, report.ok, body)


def document(title: str, verdict: str, ok: bool, body: str) -> str:
    """A whole page around ``body``, which is HTML; the rest is text."""
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>"
        f'<p class="verdict {"ok" if ok else "bad"}">{escape(verdict)}</p>'
        f"{body}</body></html>\n"
    )


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Of text cells; numbers are set to the right, and the head of a column that has only such."""
    numbers = [all(map(_is_number, column)) for column in zip(*rows, strict=True)]
    heads = "".join(
        f"<th{_kind(number)}>{escape(name)}</th>"
        for name, number in zip(head, numbers or [False] * len(head), strict=True)
    )
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<h2>{escape(title)}</h2><div class="wide"><table><tr>{heads}</tr>{lines}</table></div>'


def _cell(value: object) -> str:
    return f"<td{_kind(_is_number(value))}>{escape(str(value))}</td>"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _kind(number: bool) -> str:
    return ' class="n"' if number else ""


def figures(report: RunReport) -> str:
    """The tables below the charts."""
    return f"{_latencies(report)}{_lags(report)}{_counts(report)}"


def subject(report: RunReport) -> str:
    run = report.subject
    return (
        f"Run {run.run}, started {run.started}, {run.seconds:.0f} s. "
        f"{run.users} clients on {run.devices} devices at real public addresses, "
        f"{run.pairs} pairs ({run.crossing} across IDCs), groups of "
        f"{', '.join(str(size) for size in sorted(set(run.groups)))}. "
        f"Offered {run.rate:g} messages/s ({run.group_rate:g} to groups). "
        f"Machine: {run.cpus} CPUs, load average {run.load_average:.1f} at the start."
    )


def promises(report: RunReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(p.name)}</td><td>{escape(p.limit)}</td><td>{escape(p.measured)}</td>"
        f'<td class="{"ok" if p.ok else "bad"}">{"held" if p.ok else "broken"}</td></tr>'
        for p in report.promises
    )
    head = "<tr><th>promise</th><th>limit</th><th>measured</th><th></th></tr>"
    return f'<h2>Promises</h2><div class="wide"><table>{head}{rows}</table></div>'


def charts(report: RunReport) -> str:
    samples = report.samples
    last = samples[-1].t if samples else 1.0
    axis = Axis(max([last, *(mark.t for mark in report.marks)]), report.spans, report.marks)

    def line(name: str, colour: str, value: Callable[[Sample], float | None]) -> Line:
        return Line(name, colour, [(sample.t, value(sample)) for sample in samples])

    def by_idc(name: str, colour: str) -> Line:
        return line(name, colour, lambda sample: sample.connections.get(name, 0))

    def lag(name: str, colour: str) -> Line:
        return line(name, colour, lambda sample: sample.lag_ms.get(name))

    idcs = list(zip(report.subject.idcs, IDC_COLOURS, strict=False))
    links = sorted({name for sample in samples for name in sample.lag_ms})
    sections = [
        ("IDC states, by the policy", lanes(axis, _states(report))),
        (
            "Availability: sends without an answer, and lost connections",
            chart(
                axis,
                [
                    line("sends waiting", "c2", lambda sample: sample.waiting),
                    line("devices not connected", "c5", lambda s: s.connections.get("", 0)),
                ],
                "count",
            ),
        ),
        (
            "Rate",
            chart(
                axis,
                [
                    line("offered", "c6", lambda sample: sample.offered),
                    line("acked", "c1", lambda sample: sample.acked),
                    line("delivered", "c3", lambda sample: sample.deliveries),
                ],
                "per second",
            ),
        ),
        (
            "Latency",
            chart(
                axis,
                [
                    line("ack p50", "c1", lambda sample: sample.ack_p50_ms),
                    line("ack p99", "c2", lambda sample: sample.ack_p99_ms),
                    line("receive p50", "c3", lambda sample: sample.receive_p50_ms),
                    line("receive p99", "c5", lambda sample: sample.receive_p99_ms),
                ],
                "ms, logarithmic",
                logarithmic=True,
            ),
        ),
        ("Devices by IDC", chart(axis, [by_idc(idc, colour) for idc, colour in idcs], "devices")),
        (
            "Replication lag",
            chart(
                axis,
                [lag(name, colour) for name, colour in zip(links, IDC_COLOURS, strict=False)],
                "ms, logarithmic",
                logarithmic=True,
            ),
        ),
    ]
    body = "".join(f"<h2>{escape(name)}</h2>{svg}" for name, svg in sections)
    items = "".join(f"<li>{mark.t:.1f} s: {escape(mark.text)}</li>" for mark in report.marks)
    phases = ", ".join(f"{s.name} {s.start:.0f}-{s.end:.0f} s" for s in report.spans)
    return (
        f"{body}<h2>What happened</h2><ol>{items}</ol>"
        f'<p class="soft">Phases (every second one is shaded): {escape(phases)}.</p>'
    )


def _states(report: RunReport) -> Sequence[tuple[str, list[tuple[float, str]]]]:
    lanes_of = []
    for idc in report.subject.idcs:
        changes: list[tuple[float, str]] = []
        for sample in report.samples:
            state = sample.states.get(idc)
            if state and (not changes or changes[-1][1] != state):
                changes.append((sample.t if changes else 0.0, state))
        lanes_of.append((idc, changes))
    return lanes_of


def _latencies(report: RunReport) -> str:
    rows = ""
    for phase in report.latencies:
        cells = "".join(
            f'<td class="n">{value:.1f}</td>'
            for one in phase.summaries()
            for value in (one.p50_ms, one.p99_ms, one.max_ms)
        )
        rows += f'<tr><td>{escape(phase.name)}</td><td class="n">{phase.composed}</td>{cells}</tr>'
    head = "".join(
        f'<th class="n">{what} {figure}</th>'
        for what in ("ack", "receive")
        for figure in ("p50", "p99", "max")
    )
    return (
        '<h2>Latency in ms, by the phase in which messages were sent</h2><div class="wide"><table>'
        f'<tr><th>phase</th><th class="n">messages</th>{head}</tr>{rows}</table></div>'
    )


def _lags(report: RunReport) -> str:
    rows = "".join(
        f'<tr><td>{escape(way)}</td><td class="n">{lag.samples}</td>'
        + "".join(
            f'<td class="n">{value:.1f}</td>' for value in (lag.p50_ms, lag.p99_ms, lag.max_ms)
        )
        + "</tr>"
        for way, lag in report.lags().items()
    )
    head = "".join(f'<th class="n">{figure}</th>' for figure in ("samples", "p50", "p99", "max"))
    return (
        '<h2>Replication lag in ms, including the fault</h2><div class="wide"><table>'
        f"<tr><th>from -&gt; at</th>{head}</tr>{rows}</table></div>"
    )


def _counts(report: RunReport) -> str:
    check = report.verdict
    rows = "".join(
        f'<tr><td>{escape(name.replace("_", " "))}</td><td class="n">{getattr(check.counts, name)}'
        "</td></tr>"
        for name in check.counts.__slots__
    )
    examples = "".join(
        f"<li>{escape(kind)}: {escape(line)}</li>"
        for kind, lines in sorted(check.examples.items())
        for line in lines
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        f'<h2>Counts</h2><div class="wide"><table>{rows}</table></div>'
        + (f"<h2>Violations</h2><ul>{examples}</ul>" if examples else "")
        + (f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "")
    )
