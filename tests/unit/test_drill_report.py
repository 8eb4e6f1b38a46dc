"""A drill's report: its JSON obeys the published schema, the verdict is the first line everywhere,
and a later run is compared with earlier ones."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from imcore.checker import Kind
from imcore.checker import Report as Verdict
from imcore.checker.availability import Availability, Move
from imcore.checker.ledger import Entry
from imctl.commands.drill import _summary
from imctl.drill import records
from imctl.drill.judging import PRIVATE, publish, reconnects
from imctl.drill.rto import STEPS
from imctl.report import drill_page
from imctl.report.charts import Axis, chart
from imctl.report.drill import (
    DrillReport,
    Found,
    Probed,
    Reconnects,
    Recovered,
    markdown,
    schema,
)
from imctl.report.model import Mark, Promise, RunReport, Span, Subject
from imctl.report.page import table
from imctl.testing.browser import lay_out
from services.loadgen.stats import Sample


def report(rto_s: float | None = 4.5, outcome: str = "deviated") -> DrillReport:
    subject = Subject(
        region="three-idc", run="ab12", started="2026-01-01T00:00:00+00:00",
        idcs=["fra", "iad", "sin"], victim="fra", seconds=40.0, rate=15, group_rate=2, users=30,
        devices=36, pairs=15, crossing=9, groups=[10], cpus=2, load_average=0.5,
    )  # fmt: skip
    run = RunReport(
        subject=subject,
        verdict=Verdict(finished=True),
        latencies=[],
        availability=Availability(),
        samples=[Sample(1.0, connections={"fra": 3}, lag_ms={"fra->iad": 4.0})],
        marks=[Mark(1.0, "fra", "fra is killed <b>")],
        spans=[Span("during", 0.0, 2.0)],
        promises=[Promise("RTO of fra", "<= 8 s", "4.50 s", True)],
    )
    steps: dict[str, float | None] = {step: None for step in STEPS}
    steps["99 % answered"] = rto_s
    line = f"{outcome}: the wait is 9, at most 8 is steady"
    return DrillReport(
        drill="idc-loss", title="An IDC is lost", variables={"victim": "fra"}, outcome=outcome,
        reason=line.partition(": ")[2], line=line, run=run,
        findings=[Found("deviated", "the wait is 9, at most 8 is steady", 12.0)],
        recoveries=[Recovered("fra", 11, 11, steps)],
        ledger={("fra", "iad"): Entry(sent=3, acked=3)},
        looks=[Probed("before", 3.0, "", ""), Probed("during", 12.0, "the wait is 9", "")],
        epochs_seen=4,
        reconnects=[Reconnects("iad", [(0.0, 0.0), (2.0, 4.0)], [(0.0, 0.0), (2.5, 4.0)], 0.2)],
    )  # fmt: skip


def test_the_json_obeys_the_published_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    document = json.loads(json.dumps(report().as_json()))
    jsonschema.validate(document, schema())
    document["outcome"] = "fine"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_a_switchovers_forecast_stands_beside_how_its_clients_moved() -> None:
    moves = [
        Move("fra", "failback", 0, moved={9: 1}),
        Move("iad", "switchover", 1_000_000, moved={1: 3_000_000, 2: 2_000_000}),
    ]
    said = [(0.0, 0.0), (2.0, 2.0)]
    assert reconnects([("iad", said), ("iad", said)], moves) == [
        Reconnects("iad", said, [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)], 0.0)
    ]
    assert reconnects([("sin", said)], moves) == []
    assert reconnects([("iad", [(0.0, 0.0)])], moves)[0].apart is None
    text = markdown(report())
    assert "| iad | predicted | 4 | 0.50 | 1.00 | 1.50 | 2.00 |" in text
    assert "| iad | measured | 4 | 0.62 | 1.25 | 1.88 | 2.50 |" in text
    assert "Reconnects of planned moves" in drill_page.page(report())


def test_split_brain_says_epochs_and_writers_or_that_nothing_is_known_of_them() -> None:
    found = report()
    assert "it is not known whether a fenced writer acked" in markdown(found)
    found.run.verdict.counts.placed = 70
    assert "No two writers of a log contradict each other in the 70 acks" in markdown(found)
    found.run.verdict.found(Kind.PLACE_TWICE, "a and b were both acked as fra.1 7")
    assert "of the 4 epochs seen. a and b were both acked as fra.1 7\n" in markdown(found)
    document = json.loads(json.dumps(found.as_json()))
    jsonschema.validate(document, schema())
    assert document["split_brain"]["two_writers"] == ["a and b were both acked as fra.1 7"]


def test_the_first_line_says_the_verdict_and_why() -> None:
    found = report()
    assert markdown(found).splitlines()[0] == found.line
    page = drill_page.page(found)
    assert f'<p class="verdict bad">{found.line}</p>' in page


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows() -> None:
    page = drill_page.page(report())
    assert not re.search(r"(src|href)=|url\(|@import|<script", page)
    assert "fra is killed &lt;b&gt;" in page and "killed <b>" not in page


@pytest.mark.nightly
@pytest.mark.parametrize("width", [360, 1200])
def test_a_real_browser_shows_all_of_it(chromium: str, tmp_path: Path, width: int) -> None:
    page = tmp_path / "report.html"
    page.write_text(drill_page.page(report()))
    layout = lay_out(chromium, page, width, tmp_path / "profile")
    assert layout.width <= width, "it scrolls sideways"
    assert len(layout.charts) == 6
    assert all(wide > 0.8 * min(width, 1000) and high > 10 for wide, high in layout.charts)
    assert report().line in layout.text and "fra is killed <b>" in layout.text


def test_heads_stand_over_their_numbers() -> None:
    found = table("t", ["from", "sent", "limit"], [("fra", 3, 1), ("iad", 4, "<= 5")])
    assert '<th>from</th><th class="n">sent</th><th>limit</th>' in found
    assert "<th>from</th>" in table("t", ["from"], [])


def test_numbers_of_marks_do_not_cover_each_other() -> None:
    axis = Axis(60, [], [Mark(t, "fra", "x") for t in (10, 10.1, 10.2, 30)])
    drawn = chart(axis, [], "s")
    ys = [int(y) for y in re.findall(r'<text x="[0-9.]+" y="(\d+)">\d</text>', drawn)]
    assert ys == [19, 30, 41, 19]


@pytest.mark.parametrize("width", [80, 120])
def test_the_screen_fits(width: int) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width).print(_summary(report()))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in out.getvalue()
    assert any(line.strip().startswith("RTO of fra") for line in lines)


def test_files_are_written_and_the_journal_says_nothing_of_the_machine(tmp_path: Path) -> None:
    failed = {"exception": ['Traceback\n  File "/home/me/x.py"\n', "a.B: no answer\n"]}
    journal: dict[str, Any] = {"node": "host-7", "platform": "Linux", "run": [failed]}
    publish(report(), journal, tmp_path / "out", tmp_path / "runs")
    shared = json.loads((tmp_path / "out" / "journal.json").read_text())
    assert not set(PRIVATE) & set(shared)
    assert shared["run"][0]["exception"] == ["no answer"]
    assert records.read(tmp_path / "runs")[0]["rto_s"] == 4.5


def test_a_slower_recovery_than_in_earlier_runs_is_noted(tmp_path: Path) -> None:
    for rto_s in (2.0, 2.2, 9.0):
        records.add(tmp_path, report(rto_s, "pass"), tmp_path)
    records.add(tmp_path, report(0.1, "deviated"), tmp_path)
    with (tmp_path / records.FILE).open("a") as file:
        file.write('{"run": "torn')
    records.add(tmp_path, report(9.9, "deviated"), tmp_path)  # it ends the torn line first
    assert records.read(tmp_path)[-1]["rto_s"] == 9.9
    earlier = records.passed(tmp_path, "idc-loss")
    assert [one.rto_s for one in earlier] == [9.0, 2.2, 2.0]
    assert records.passed(tmp_path, "wan-partition") == []
    said = records.regression(replace(report(4.5), earlier=earlier))
    assert said == "RTO took 4.50 s; in 3 earlier runs that passed it took 2.20 s (median)."
    assert records.regression(replace(report(3.1), earlier=earlier)) == ""
    assert records.regression(replace(report(None), earlier=earlier)) == ""
