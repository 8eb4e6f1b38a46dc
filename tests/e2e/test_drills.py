"""Drills as a user runs them: three that pass, and what ends one early."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from imctl.drill.faults import FaultBook
from imctl.testing.broken import PromiseBroken
from tests.e2e.drilling import (
    COMMAND_S,
    ROOT,
    assert_nothing_left,
    deployed,
    drill,
    imctl,
    said_by,
    until,
)

pytestmark = pytest.mark.e2e

BACK_S = 120.0

Figures = Callable[[str, object], None]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with deployed(tmp_path_factory.mktemp("drills")) as data:
        yield data


# ------------------------------------------------------------------------------------ passing


@pytest.mark.parametrize("name", ["idc-loss", "planned-switchover", "wan-partition"])
def test_a_ready_made_drill_passes(
    deployment: Path, tmp_path: Path, figures: Figures, name: str
) -> None:
    status, said, report = drill(deployment, name, tmp_path)
    if any(row["lost"] or row["duplicates"] or row["out_of_order"] for row in report["ledger"]):
        raise PromiseBroken(said)
    assert (status, report["outcome"]) == (0, "pass"), said
    assert len(report["ledger"]) == 9 and all(row["acked"] >= 30 for row in report["ledger"])
    assert report["split_brain"]["disputes"] == []
    assert {look["when"] for look in report["hypothesis"]} == {
        "before", "during", "after", "restored",
    }  # fmt: skip
    texts = [mark["text"] for mark in report["run"]["marks"]]
    if name == "idc-loss":
        (loss,) = report["recoveries"]
        steps = loss["steps"]
        assert loss["affected"] == loss["answered"] >= 5
        assert None not in steps.values(), steps
        assert steps["detected"] <= steps["decided"] <= steps["committed"] <= steps["steady"]
        assert steps["first moved"] <= steps["50 % moved"] <= steps["99 % moved"]
        assert report["run"]["rpo"]["looked_at"] > 0 and report["run"]["rpo"]["lost"] == 0
        figures("RTO of the drill idc-loss", f"{steps['99 % answered']:.2f} s")
    elif name == "planned-switchover":
        assert report["split_brain"]["epochs_seen"] >= 4
        (move,) = [m for m in report["run"]["moves"] if m["what"] == "switchover"]
        assert move["clients"] >= 5 and move["failed_sends"] == 0
        (curve,) = report["reconnects"]
        assert curve["measured"][-1][1] == move["clients"] and curve["predicted"][-1][0] > 0
        figures("gap of the drill planned-switchover", f"{move['gap_ms']:.0f} ms")
    else:
        assert "the link fra <-> iad is cut" in texts and "links are restored" in texts
        # While it is cut, what crosses it takes longer: the fault was felt.
        crossing = max(r["receive"]["p99_ms"] for r in report["ledger"] if r["from"] == "fra")
        assert crossing > 500
    files = ("report.html", "report.json", "report.md", "journal.json", "history.jsonl")
    shared = "".join((tmp_path / file).read_text() for file in files)
    keys = [path.read_text() for path in (deployment / "pki").glob("*key*")]
    secrets = [line for key in keys for line in key.split() if len(line) > 20]
    assert secrets and not any(line in shared for line in secrets)
    assert str(deployment) not in shared and os.uname().nodename not in shared
    assert_nothing_left(deployment)


# --------------------------------------------------------------------------------- early ends


def begun(deployment: Path, tmp_path: Path) -> subprocess.Popen[str]:
    """A drill idc-loss that has just made its fault: sin is killed. Nobody looks at what was
    before, so it is short."""
    document = yaml.safe_load((ROOT / "regions" / "drills" / "idc-loss.yaml").read_text())
    before = document["method"][0]["provider"]
    assert before["func"] == "hold"
    before["arguments"]["seconds"] = 0.5
    file = tmp_path / "idc-loss.yaml"
    file.write_text(yaml.safe_dump(document))
    child = imctl(
        "drill",
        "run",
        file,
        "--data",
        deployment,
        "--out",
        tmp_path,
        "--yes",
        "--var",
        "victim=sin",
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "sin is killed" in line and " s  " in line:
            return child
    raise AssertionError("it ended before its fault")


def test_a_drill_that_is_killed_leaves_no_fault(deployment: Path, tmp_path: Path) -> None:
    child = begun(deployment, tmp_path)
    assert [fault.unit for fault in FaultBook(deployment).read().faults] == ["sin"]
    child.kill()
    said_by(child)
    until(lambda: not FaultBook(deployment).read().run, BACK_S)
    assert_nothing_left(deployment)


def test_a_drill_is_aborted_by_another_imctl(deployment: Path, tmp_path: Path) -> None:
    child = begun(deployment, tmp_path)
    refused, said = said_by(
        imctl("drill", "run", "idc-loss", "--data", deployment, "--yes"), COMMAND_S
    )
    assert refused == 3 and "one-drill: another drill is running" in said
    aborting, said = said_by(imctl("drill", "abort", "--data", deployment))
    assert aborting == 0 and "sin is killed: sin is restarted" in said
    status, said = said_by(child)
    assert status == 6 and "aborted: ended by hand" in said
    assert_nothing_left(deployment)
    assert (tmp_path / "report.html").exists()


def test_who_asks_again_and_again_does_not_wait_and_all_is_undone(
    deployment: Path, tmp_path: Path
) -> None:
    """As an operator does whose DrillRun is deleted."""
    child = begun(deployment, tmp_path)
    for _ in range(8):
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
    status, said = said_by(child)
    assert status == 6 and "aborted: ended by hand" in said and "Traceback" not in said
    assert "fresh logins" not in said, "nobody waits for what it shows"
    assert_nothing_left(deployment)


@pytest.mark.nightly
def test_ctrl_c_ends_a_drill_and_undoes_it(deployment: Path, tmp_path: Path) -> None:
    child = imctl("drill", "run", "wan-partition", "--data", deployment, "--out", tmp_path, "--yes")
    assert child.stdout is not None
    for line in child.stdout:
        if "the link fra <-> iad is cut" in line and " s  " in line:
            break
    child.send_signal(signal.SIGINT)
    status, said = said_by(child)
    assert status == 6 and "aborted: ended by hand" in said and "Traceback" not in said
    assert_nothing_left(deployment)
