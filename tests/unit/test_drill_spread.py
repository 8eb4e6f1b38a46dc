"""How figures spread over seeds, the table of it, and what the command makes of outcomes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from imctl.commands import drill as command
from imctl.drill.rto import STEPS
from imctl.drill.spread import ERROR, Moved, Seed, document, not_passed, spread, spreads
from imctl.report.drill import Recovered
from imctl.report.spread import view
from imctl.testing import schema

DRILLS = Path(__file__).parents[2] / "regions" / "drills"


def seed(number: int, rto_s: float | None = 4.0, outcome: str = "pass", lost: int = 0) -> Seed:
    steps: dict[str, float | None] = {step: 1.0 for step in STEPS}
    steps["99 % answered"] = rto_s
    return Seed(
        seed=number, outcome=outcome, reason="every promise held", findings=(),
        losses=(Recovered("fra", 11, 11, steps),), moves=(Moved("iad", 0.25, 3.0),),
        looked_at=100, delayed=number, lost=lost, canaries_delayed=0, canaries_lost=0, acked=900,
        failed_sends=0, simulated_s=60.0, digest="ab",
    )  # fmt: skip


def test_quantiles_are_of_the_nearest_rank() -> None:
    found = spread("fra", "decided", "s", [float(n) for n in range(1, 101)])
    assert found.at == {"min": 1, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert (found.n, found.never) == (100, 0)


def test_what_never_happened_is_longer_than_all_that_did() -> None:
    found = spread("fra", "99 % answered", "s", [3.0, None, 1.0, 2.0])
    assert found.at == {"min": 1.0, "p50": 2.0, "p90": None, "p99": None, "max": None}
    assert (found.n, found.never) == (4, 1)


def test_each_loss_and_move_has_its_rows_and_the_second_of_an_idc_is_told_apart() -> None:
    first = seed(1)
    twice = replace(seed(2), losses=first.losses * 2)
    found = spreads([first, twice])
    assert [one.figure for one in found if one.of == "fra"] == list(STEPS)
    assert {one.n for one in found if one.of == "fra"} == {2}
    assert {one.n for one in found if one.of == "fra (2)"} == {1}
    assert [one.at["max"] for one in found if one.of == "from iad"] == [0.25, 3.0]
    assert next(one for one in found if one[:2] == ("RPO", "delayed")).at["max"] == 2


def test_a_seed_of_which_nothing_is_known_has_no_part_in_it() -> None:
    broken = Seed.broken(3, "no IDC serves", 30.0, "cd")
    assert broken.outcome == ERROR
    assert {one.n for one in spreads([seed(1), broken])} == {1}
    assert not_passed([seed(1), broken]) == [broken]


def test_the_table_fits_into_80_columns() -> None:
    said = io.StringIO()
    found = [seed(1), seed(2, None, "deviated"), seed(123_456, 104.25, lost=3)]
    Console(file=said, width=80).print(view("idc-loss", found))
    lines = said.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("idc-loss: 1 deviated, 2 pass; seeds 1 to 123456")
    (rto,) = [line.split() for line in lines if "99 % answered" in line]
    assert rto[-6:] == ["4.00", "104.25", "never", "never", "never", "3"]
    assert "…" not in said.getvalue()
    assert any(line.startswith("seed 2: deviated: ") for line in lines)
    assert any(
        line.startswith("to repeat: imctl drill simulate idc-loss --from 2") for line in lines
    )


def test_the_json_obeys_the_published_schema() -> None:
    shown = document("idc-loss", "An IDC is lost", {"victim": "fra"}, [seed(1), seed(2, None)])
    schema.check(json.loads(json.dumps(shown)), "simulation")


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (["pass", "pass"], 0),
        (["pass", "deviated"], 5),
        (["deviated", ERROR], 5),
        (["pass", ERROR], 1),
        (["pass", "inconclusive"], 4),
    ],
)
def test_the_exit_status_is_that_of_the_worst_seed(
    outcomes: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(run: Any, seeds: range, jobs: int) -> Iterator[Seed]:
        assert list(seeds) == [7, 8]
        assert jobs == 1
        for number in reversed(seeds):
            yield seed(number, outcome=outcomes[number - 7])

    monkeypatch.setattr("services.sim.apart.outcomes", ran)
    drill = str(DRILLS / "idc-loss.yaml")
    asked = ["simulate", drill, "--seeds", "2", "--from", "7", "--jobs", "1", "-o", "json"]
    done = CliRunner().invoke(command.drill, asked)
    assert done.exit_code == status
    assert [row["seed"] for row in json.loads(done.stdout)["runs"]] == [7, 8]


def test_what_cannot_be_simulated_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.sim.apart.outcomes", lambda *_: pytest.fail("it began"))
    done = CliRunner().invoke(command.drill, ["simulate", str(DRILLS / "mirror-stall.yaml")])
    assert "method[1].provider.arguments.rate_kbit: " in str(done.exception)
