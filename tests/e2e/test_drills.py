"""Drills as a user runs them: three that pass, what ends one early, and defects that none may miss.

A defect is planted by a patch of the nodes, which the drill knows nothing of: it wakes when the
drill's method begins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imcore.runtime import SystemClock
from imctl import startup
from imctl.drill.faults import FaultBook
from imctl.report.drill import schema
from imctl.target.local import Local
from imctl.testing.lab import Edit, lab_region

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
IMCTL = Path(sys.executable).with_name("imctl")
DRILL_S = 300
BACK_S = 120.0
COMMAND_S = 90.0

Figures = Callable[[str, object], None]


@contextmanager
def deployed(folder: Path, edit: Edit | None = None, patch: str = "") -> Iterator[Path]:
    """Three IDCs that serve, whose nodes are patched by ``patch``; the deployment's folder."""
    region = lab_region(folder, edit)
    target = Local.prepare(region, folder / "deployment", True, SystemClock())
    before = os.environ.get("PYTHONPATH")
    if patch:
        (folder / "sitecustomize.py").write_text(patch)
        os.environ["PYTHONPATH"] = str(folder)
    try:
        startup.bring_up(target, lambda name, serving: None)
    finally:
        if patch:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before
    try:
        yield target.data
    finally:
        target.look_again()
        target.stop()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with deployed(tmp_path_factory.mktemp("drills")) as data:
        yield data


def imctl(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [IMCTL, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def said_by(child: subprocess.Popen[str], timeout_s: float = DRILL_S) -> tuple[int, str]:
    out, _ = child.communicate(timeout=timeout_s)
    print(out)
    return child.returncode, out


def drill(
    data: Path, name: str, out: Path, *more: str, on_line: Callable[[str], None] = lambda line: None
) -> tuple[int, str, dict[str, Any]]:
    """Exit status, what it said, report.json."""
    child = imctl("drill", "run", name, "--data", data, "--out", out, "--yes", "--seed", "7", *more)
    assert child.stdout is not None
    lines = []
    with child.stdout:
        for line in child.stdout:
            lines.append(line)
            on_line(line)
    status = child.wait(DRILL_S)
    said = "".join(lines)
    print(said)
    assert (out / "report.json").exists(), said
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, schema())
    first = (out / "report.md").read_text().splitlines()[0]
    assert first in said and first.startswith(f"{report['outcome']}: {report['reason']}")
    return status, said, report


def until(holds: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def status_of(data: Path) -> dict[str, Any]:
    _, out = said_by(imctl("status", "--data", data, "-o", "json"), COMMAND_S)
    found: dict[str, Any] = json.loads(out)
    return found


def assert_nothing_left(data: Path) -> None:
    assert FaultBook(data).read().faults == [] and FaultBook(data).read().run == ""
    found = status_of(data)
    states = {name: row["state"] for name, row in found["policy"]["idcs"].items()}
    assert set(states.values()) == {"active"}, states
    assert {link["mode"] for link in found["links"]} == {"pass"}
    assert all(link["as_configured"] for link in found["links"])
    assert {unit["state"] for unit in found["processes"].values()} == {"running"}


# ------------------------------------------------------------------------------------ passing


@pytest.mark.parametrize("name", ["idc-loss", "planned-switchover", "wan-partition"])
def test_a_ready_made_drill_passes(
    deployment: Path, tmp_path: Path, figures: Figures, name: str
) -> None:
    status, said, report = drill(deployment, name, tmp_path)
    assert (status, report["outcome"]) == (0, "pass"), said
    assert len(report["ledger"]) == 9
    for row in report["ledger"]:
        assert row["acked"] >= 30 and row["lost"] == row["duplicates"] == row["out_of_order"] == 0
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


# ---------------------------------------------------------------------------- planted defects

FLAG = "planted"
WAKES = """
import pathlib
FLAG = pathlib.Path(__file__).with_name("planted")
"""
# iad's mirror of fra's log stands still, and says that all is well.
PAUSED_MIRROR = (
    WAKES
    + """
import asyncio
from services.mirror.follow import Follower
run = Follower.run
async def stands_still(self):
    task = asyncio.ensure_future(run(self))
    while not (FLAG.exists() and (self.own, self.idc) == ("iad", "fra")):
        await asyncio.sleep(0.1)
    task.cancel()
    while True:
        self.heard_at = self.clock.now()
        await asyncio.sleep(0.1)
Follower.run = stands_still
"""
)
# iad's ipconf goes on with the policy that it had.
OLD_EPOCH = (
    WAKES
    + """
from services.ipconf.server import IpconfServer
class Old:
    stale = False
    def __init__(self, holder):
        self.holder, self.kept = holder, None
    @property
    def policy(self):
        if FLAG.exists():
            self.kept = self.kept or self.holder.policy
        return self.kept or self.holder.policy
made = IpconfServer.__init__
def init(self, own, *rest, **more):
    made(self, own, *rest, **more)
    if own == "iad":
        self._holder = Old(self._holder)
IpconfServer.__init__ = init
"""
)


def planted(tmp_path: Path, patch: str, name: str, *more: str) -> tuple[int, str, dict[str, Any]]:
    with deployed(tmp_path, patch=patch) as data:

        def wake(line: str) -> None:
            if line.startswith("== checking the steady state"):
                (tmp_path / FLAG).touch()

        return drill(data, name, tmp_path / "out", *more, on_line=wake)


def test_a_mirror_that_stands_still_without_an_alarm_is_found(tmp_path: Path) -> None:
    status, said, report = planted(tmp_path, PAUSED_MIRROR, "wan-partition", "--var", "b=sin")
    assert (status, report["outcome"]) == (5, "deviated"), said
    assert "iad lacks what fra.1 has in its log" in report["reason"]


def test_an_ipconf_that_answers_with_an_old_epoch_is_found(tmp_path: Path) -> None:
    status, said, report = planted(tmp_path, OLD_EPOCH, "planned-switchover", "--var", "source=fra")
    assert (status, report["outcome"]) == (5, "deviated"), said
    assert "the ipconf of iad answers with an old epoch" in report["reason"]


def test_a_survivor_without_headroom_is_found(tmp_path: Path) -> None:
    """It carries its own clients, and not those of a lost IDC too."""

    def small(spec: dict[str, Any]) -> None:
        for idc in spec["idcs"]:
            if idc["name"] != "fra":
                idc["capacity"] = {"sessions": 17}

    with deployed(tmp_path, small) as data:
        status, said, report = drill(data, "idc-loss", tmp_path / "out")
    assert (status, report["outcome"]) == (5, "deviated"), said
    # Who is slow to take them loses some to the other one.
    assert re.search("(iad|sin) carries .*: no headroom", report["reason"]), report["reason"]
