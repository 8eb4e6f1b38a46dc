"""The report: promises judged, one schema of JSON, a page that needs nothing else, a table that
fits 80 and 120 columns."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from rich.console import Console

from imcore import history as h
from imcore.checker import Kind
from imcore.checker import Report as Verdict
from imcore.checker.availability import Availability
from imcore.checker.latency import Latencies
from imcore.errors import BadInput
from imcore.region.load import load_region
from imctl.report import promises
from imctl.report.charts import Axis, Line, chart
from imctl.report.model import Mark, Promise, RunReport, Span, Subject, write_json
from imctl.report.page import page, write_page
from imctl.report.screen import show
from services.loadgen.stats import Sample

S = 1_000_000


def availability(recovered_s: float = 4.0, lost: bool = False) -> Availability:
    found = Availability()
    events: list[h.Event] = [
        *[h.Connection(0, n, "fra", "fra-gw-1") for n in range(10)],
        h.Compose(1 * S, 0, 0, "0-x", 0),
        h.Ack(2 * S, 0, "0-x", "stored"),
        h.Fault(10 * S, "fra", "kill"),
        h.Fault(10 * S, "fra", "killed"),
    ]
    for n in range(10):
        events.append(h.Compose(11 * S, n, 0, f"{n + 1}-x", 0))
        events.append(h.Ack(int((10 + recovered_s) * S), n, f"{n + 1}-x", "stored"))
        events.append(h.Connection(12 * S, n, "iad", "iad-gw-1"))
    events += [h.Login(15 * S, 0, "u", "iad", "rpo"), h.View(15 * S, 0, 0, [])]
    events += [h.Fault(20 * S, "iad", "switchover")]
    events += [h.Connection(23 * S, n, "sin", "sin-gw-1") for n in range(10)]
    events += [h.Fault(24 * S, "iad", "done")]
    events += [h.Login(30 * S, 1, "u", "sin", "final")]
    events += [h.View(30 * S, 1, 0, [] if lost else ["0-x"])]
    for event in events:
        found.feed(event)
    return found


def latencies() -> Latencies:
    found = Latencies()
    for event in (
        h.Phase(0, "before"),
        h.Compose(1000, 0, 0, "1-x", 0),
        h.Ack(6000, 0, "1-x", "stored"),
        h.Shown(9000, 1, 0, "1-x", 0, False),
    ):
        found.feed(event)
    return found


def good_verdict() -> Verdict:
    verdict = Verdict(finished=True)
    verdict.counts.acked = 1
    return verdict


def report() -> RunReport:
    subject = Subject(
        region="three-idc", run="abc", started="2025-01-01T00:00:00Z", idcs=["fra", "iad", "sin"],
        victim="fra", seconds=120.0, rate=315, group_rate=25, users=300, devices=400, pairs=150,
        crossing=61, groups=[30] * 10 + [200], cpus=2, load_average=0.5,
    )  # fmt: skip
    states = [{"fra": s, "iad": "active", "sin": "active"} for s in ("active", "failed", "active")]
    samples = [
        Sample(
            t=float(t), offered=316, acked=310, group_acked=24, deliveries=1500, ack_p50_ms=3,
            ack_p99_ms=9, connections={"": t, "fra": 130}, lag_ms={"fra->iad": 60.0 + t},
            states=states[t // 40],
        )
        for t in range(120)
    ]  # fmt: skip
    verdict = good_verdict()
    result = RunReport(subject, verdict, latencies().phases, availability(), samples)
    result.marks = [Mark(30, "fra", "kill -9 <fra>"), Mark(36, "fra", "failed over")]
    result.spans = [Span("before", 0, 30), Span("during", 30, 60), Span("after", 60, 120)]
    result.promises = [
        *promises.of_verdict(verdict),
        *promises.of_failover(result.availability),
        *promises.of_switchover(result.availability.moves[0]),
        *promises.of_rate(samples, [result.spans[0], result.spans[2]], 300, 20),
        promises.of_time(120),
        promises.of_return("fra", 130, 131),
    ]
    return result


def test_a_good_run_holds_every_promise() -> None:
    good = report()
    assert good.ok, [promise for promise in good.promises if not promise.ok]
    assert len(good.promises) == 14
    good.promises = []
    assert not good.ok  # nothing promised is nothing proven


def broken(found: list[Promise]) -> list[str]:
    return [promise.name for promise in found if not promise.ok]


def test_each_violation_breaks_its_promise() -> None:
    for kind, name in {
        Kind.MISSING: "Acked messages missing",
        Kind.SHOWN_TWICE: "Duplicate messages",
        Kind.STANDS_TWICE: "Duplicate messages",
        Kind.VIEWS_DIFFER: "Messages out of order",
        Kind.OWN_ORDER: "Messages out of order",
        Kind.ANSWER_FIRST: "Messages out of order",
        Kind.UNEVEN: "Messages out of order",
        Kind.MISPLACED: "Messages out of order",
        Kind.PHANTOM: "Messages never sent, or altered",
        Kind.ALTERED: "Messages never sent, or altered",
        Kind.STRAY: "Messages never sent, or altered",
        Kind.EPOCH_BACK: "Policy epochs reverted or conflicting",
        Kind.EPOCH_DISPUTED: "Policy epochs reverted or conflicting",
        Kind.CURSOR_BACK: "Read cursors reverted, unread counts wrong, own messages unseen",
        Kind.UNREAD_WRONG: "Read cursors reverted, unread counts wrong, own messages unseen",
        Kind.OWN_UNSEEN: "Read cursors reverted, unread counts wrong, own messages unseen",
        Kind.REPLICAS_DIFFER: "Replicas that differ at the end",
        Kind.UNPROVEN: "Conversations not checked in an IDC",
    }.items():
        verdict = good_verdict()
        verdict.found(kind, "x")
        assert broken(promises.of_verdict(verdict)) == [name]
    empty, unfinished = Verdict(finished=True), good_verdict()
    unfinished.finished = False
    for verdict in (empty, unfinished):
        assert {promise.measured for promise in promises.of_verdict(verdict)} == {"not judged"}
        assert len(broken(promises.of_verdict(verdict))) == 5


def test_what_the_history_holds_nothing_of_is_not_promised() -> None:
    verdict = good_verdict()
    names = {promise.name for promise in promises.of_verdict(verdict)}
    verdict.counts.policies = verdict.counts.cursors = verdict.counts.replicas = 1
    assert {promise.name for promise in promises.of_verdict(verdict)} - names == {
        "Policy epochs reverted or conflicting",
        "Read cursors reverted, unread counts wrong, own messages unseen",
        "Replicas that differ at the end",
    }


def test_failover_promises() -> None:
    assert broken(promises.of_failover(availability(8.0))) == []
    assert broken(promises.of_failover(availability(8.01))) == [
        "RTO (99 % of affected clients acked again)"
    ]
    assert broken(promises.of_failover(availability(12.0), promises.REAL_ENGINES)) == []
    assert broken(promises.of_failover(availability(12.1), promises.REAL_ENGINES)) != []
    lost = promises.of_failover(availability(lost=True))
    assert broken(lost) == ["RPO: messages lost"]
    assert promises.of_failover(availability())[1].measured == "0 (1 delayed, of 1 checked)"


def test_a_run_with_longer_load_has_its_time() -> None:
    region = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
    usual, longer = promises.limits_of(region), promises.limits_of(region, 75.0)
    assert usual == promises.limits_of(region, 3.0) == promises.EMBEDDED
    assert longer.total_s == usual.total_s + 120 and longer.gap_s == usual.gap_s
    assert broken(promises.of_failover(Availability())) == ["Failover"]


def test_switchover_promises() -> None:
    move = availability().moves[0]
    assert broken(promises.of_switchover(move)) == []
    move.gap, move.failed = 2_000_001, 1
    move.moved[3] = move.started + 21 * S
    assert broken(promises.of_switchover(move)) == [
        "Switchover gap", "Switchover: all clients moved", "Switchover: failed sends",
    ]  # fmt: skip
    del move.moved[3]
    assert "not all of 10" in promises.of_switchover(move)[1].measured


def test_rate_time_and_return() -> None:
    spans = [Span("before", 0, 30)]
    samples = report().samples
    assert broken(promises.of_rate(samples, spans, 311, 25)) == [
        "Message rate before and after", "Message rate to groups",
    ]  # fmt: skip
    assert broken(promises.of_rate([], spans, 1, 1)) != []
    assert broken([promises.of_time(180)]) == ["Total run time"]
    assert broken([promises.of_return("fra", 116, 130)]) == ["fra has its clients back"]
    assert broken([promises.of_return("fra", 117, 130)]) == []
    assert broken([promises.of_return("fra", 0, 0)]) != []


def test_json_has_everything_and_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    write_json(report(), path)
    document = json.loads(path.read_text())
    assert document["ok"] is True and document["report"] == 1
    assert document["outages"] == [
        {"idc": "fra", "affected": 10, "recovered": 10, "rto_ms": 4000.0}
    ]
    assert document["moves"][0]["moved_ms"] == 3000.0
    assert document["rpo"] == {"looked_at": 1, "delayed": 1, "lost": 0}
    assert document["latency"][0]["ack"]["p50_ms"] == 5.0
    assert document["lag"] == {
        "fra->iad": {"samples": 120, "p50_ms": 119.0, "p99_ms": 178.0, "max_ms": 179.0}
    }
    assert len(document["samples"]) == 120
    with pytest.raises(BadInput, match="cannot write"):
        write_json(report(), path / "x")


def test_the_page_stands_alone(tmp_path: Path) -> None:
    write_page(report(), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r"https?://|src=|@import|url\(|<link|<script", text)
    assert "prefers-color-scheme: dark" in text
    assert "Every promise held." in text
    assert "kill -9 &lt;fra&gt;" in text and "<fra>" not in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 6
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert 's-failed"' in drawings[0]
    lag = re.search(r"<tr><td>fra-&gt;iad</td>.*?</tr>", text)
    assert lag and re.findall(r"[\d.]+(?=</td>)", lag[0]) == ["120", "119.0", "178.0", "179.0"]


def test_the_page_names_what_broke() -> None:
    bad = report()
    bad.verdict.found(Kind.MISSING, "ann lacks <b>")
    bad.promises = promises.of_verdict(bad.verdict)
    bad.notes.append("a note")
    text = page(bad)
    assert "Not every promise held." in text and "broken" in text
    assert "missing: ann lacks &lt;b&gt;" in text and "a note" in text


def test_a_page_of_a_run_that_never_began() -> None:
    empty = report()
    empty.samples, empty.marks, empty.spans = [], [], []
    assert "<svg" in page(empty)


def test_a_chart_breaks_its_line_and_keeps_within_its_frame() -> None:
    axis = Axis(10, [], [])
    svg = chart(axis, [Line("x", "c1", [(0, 1.0), (1, None), (2, 700.0), (99, 3.0)])], "ms", True)
    paths = re.findall(r'class="line"[^>]* d="([^"]*)"', svg)
    assert [path.count(",") for path in paths] == [1, 2]
    for x, y in re.findall(r"([\d.]+),([\d.]+)", " ".join(paths)):
        assert 0 <= float(x) <= 1000 and 0 <= float(y) <= 170


@pytest.mark.parametrize("columns", [80, 120])
def test_the_summary_fits_the_terminal(columns: int) -> None:
    out = io.StringIO()
    bad = report()
    bad.verdict.found(Kind.MISSING, "u0001/phone's view lacks 17-0123456789ab, which was acked.")
    show(Console(file=out, width=columns), bad)
    lines = out.getvalue().splitlines()
    assert max(len(line) for line in lines) <= columns
    text = out.getvalue()
    for words in ("RTO", "<= 8 s", "4.00 s", "Switchover gap", "before", "Every promise held."):
        assert words in text
    assert re.search(r"fra->iad +120 +119 +178 +179", text)
    assert "…" not in text  # nothing is cut off
