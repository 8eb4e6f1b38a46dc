"""What one run of a drill holds in this process: the lock, the book, the janitor, the session, and
in the end its report. ``imctl drill run`` prepares it; under plain `chaos run` the control does."""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imcore.errors import ImError
from imcore.runtime import SystemClock
from imctl import auditrules
from imctl.drill import judging
from imctl.drill.breakage import Breakage
from imctl.drill.faults import FaultBook, RunLock
from imctl.drill.ground import LocalGround
from imctl.drill.model import Drill, Settings
from imctl.drill.session import Session
from imctl.drill.stage import find, stage
from imctl.errors import Guarded
from imctl.output import console
from imctl.report.drill import DrillReport
from imctl.report.live import View, make_view
from imctl.target.local import Local
from imctl.traffic import Control

JANITOR_S = 10.0
RUNS = "drills"  # below the deployment's folder: a folder for each run


@dataclass(slots=True)
class Run:
    drill: Drill
    id: str
    target: Local
    out: Path
    view: View
    values: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    lock: RunLock | None = None
    janitor: subprocess.Popen[bytes] | None = None
    report: DrillReport | None = None
    problem: str = ""  # why it has no report, or none on disk
    plain: bool = False  # by `chaos run`, which knows no verdicts of ours


current: Run | None = None


def new_id() -> str:
    return secrets.token_hex(3)


def runs_folder(target: Local) -> Path:
    return target.data / RUNS


def plain_run(title: str, settings: Settings, values: dict[str, Any]) -> Run:
    """Of an experiment that `chaos run` has read. Raises Failed, Guarded."""
    target, run_id = find(), new_id()
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "experiment"
    drill = Drill(name, Path(), {"title": title}, settings)
    view = make_view(console(), [idc.name for idc in target.region.spec.idcs])
    return Run(drill, run_id, target, runs_folder(target) / run_id, view, values, plain=True)


def begin(run: Run) -> Session:
    """Raises Guarded when another drill runs, Failed when faults are left that cannot be undone."""
    global current
    if not run.target.faults:
        raise Guarded(f"faults are off: {run.target.faults_by}")
    run.lock = RunLock(run.target.data)
    if not run.lock.take():
        raise Guarded("another drill is running on this deployment; `imctl drill abort` ends it")
    current = run
    run.out.mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    history = run.out / "history.jsonl"
    ground = LocalGround(run.target, clock)
    session = Session(ground, run.drill.settings, run.id, history, run.view, clock, run.seed)
    stage.session = session
    return session


def note_begin() -> None:
    """Before the first fault: the book is opened, and its janitor watches from now on."""
    assert current is not None
    run = current
    FaultBook(run.target.data).begin(run.drill.name, run.id, stage.need().idcs)
    command = [sys.executable, "-m", "imctl.drill.janitor", str(run.target.data)]
    run.janitor = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def undo() -> None:
    """All that is left in the book; what cannot be undone stays in it."""
    session = stage.need()
    session.left = stage.undisturbed(session.breakage.undo_all())
    session.notes += session.breakage.notes


def end(journal: dict[str, Any]) -> None:
    """Judge, write the reports, let go of everything. Errors of it go into the report's notes."""
    assert current is not None
    run = current
    try:
        session = stage.need()
        changes = auditrules.of_folder(run.target.data, session.region, session.began_ms)
        run.report = judging.judge_run(
            session, run.drill, run.values, journal, runs_folder(run.target), changes
        )
        judging.publish(run.report, journal, run.out, runs_folder(run.target))
    except (ImError, OSError) as error:  # the toolkit would pass over it
        run.problem = str(error)
        if run.report is not None:
            run.report.run.notes.append(f"The report is not whole on disk: {error}.")
        if run.plain:
            print(f"error: {error}", file=sys.stderr)
    else:
        if run.plain:
            print(f"{run.report.line}\nreport: {run.out / 'report.html'}")
    finally:
        release()


def release() -> None:
    """A second call does nothing."""
    global current
    if current is not None:
        if current.lock is not None:
            current.lock.release()
        if current.janitor is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                current.janitor.wait(JANITOR_S)  # it ends by itself once nothing is left
    current = None
    stage.close()


async def leftovers(target: Local) -> list[str]:
    """Undo what an earlier drill has left; returns what could not be undone."""
    if not FaultBook(target.data).read().faults and not FaultBook(target.data).read().run:
        return []
    async with Control(target, SystemClock(), random.Random()) as control:
        breakage = Breakage.of(target, control, SystemClock(), 0)
        problems = await breakage.undo_all()
    for note in breakage.notes:
        print(f"note: {note}", file=sys.stderr)
    return problems
