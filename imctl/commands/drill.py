"""drill list, validate, simulate, run, abort, report, history, schedule: break things and be
judged."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box, progress
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imcore.errors import BadInput
from imcore.runtime import SystemClock
from imctl import deployment, errors
from imctl.drill import model, preflight, records, simulable, spread
from imctl.drill.faults import FaultBook, RunLock
from imctl.drill.model import Drill
from imctl.errors import Failed, Guarded
from imctl.group import Commands
from imctl.options import Data, Format, Output
from imctl.output import console, emit, notes
from imctl.report import drill as rows
from imctl.report import spread as spread_view
from imctl.report.drill import DrillReport
from imctl.target import process
from imctl.target.local import Local

FILES = ("report.html", "report.json", "report.md", "journal.json", "history.jsonl", "drill.log")
ABORT_S = 240.0


class Runner(StrEnum):
    IMCTL = "imctl"
    OPERATOR = "operator"


drill = typer.Typer(
    cls=Commands,
    help="Break things on purpose under load and judge the result.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

Name = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A drill of `imctl drill list`, or a file.")
]
Var = Annotated[
    list[str] | None,
    typer.Option(
        "--var",
        metavar="NAME=VALUE",
        help="Set a variable of the drill, such as victim=iad; repeatable.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Where to write the report [default: a new folder in the deployment's `drills`].",
        show_default=False,
    ),
]
CopyTo = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Copy the report's files here [default: print the report].",
        show_default=False,
    ),
]


@drill.command("list")
def list_(output: Output = Format.TABLE) -> None:
    """List the drills in regions/drills.

    Example: imctl drill list
    """
    found = [(path, *model.check(path)) for path in model.listed()]
    documents: list[dict[str, Any]] = [
        {
            "drill": path.stem,
            "title": one.title if one else "",
            "variables": one.variables if one else {},
            "problems": problems,
        }
        for path, one, problems in found
    ]

    def table() -> Table:
        view = Table("DRILL", "TITLE", "VARIABLES", box=None, pad_edge=False)
        for row in documents:
            said = row["title"] if not row["problems"] else f"INVALID: {row['problems'][0]}"
            pairs = [f"{name}={value}" for name, value in row["variables"].items()]
            view.add_row(row["drill"], str(said), " ".join(pairs))
        return view

    if not documents:
        raise Failed(f"no drills in {model.ready_made()}")
    emit(documents, output, table)


@drill.command()
def validate(
    files: Annotated[
        list[str],
        typer.Argument(metavar="NAME|FILE...", help="Drills of `imctl drill list`, or files."),
    ],
) -> None:
    """Check drill files.

    Example: imctl drill validate regions/drills/idc-loss.yaml
    """
    wrong = []
    for name in files:
        path = model.find(name)
        _, problems = model.check(path)
        wrong += problems
        if not problems:
            print(f"{path}: valid")
    if wrong:
        raise BadInput("\n".join(wrong))


@drill.command()
def simulate(
    name: Name,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Number of simulated runs.")] = 20,
    first: Annotated[int, typer.Option("--from", metavar="N", min=0, help="First seed.")] = 1,
    var: Var = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Runs in parallel [default: one per core].", show_default=False
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Run a drill in simulation, once per seed, and show the distribution of RTO and RPO.

    The roles, the SDK, the load and the verdict are the real code; time, network and disks are
    simulated (docs/simulation.md). No deployment is needed or touched. The same seed gives the same
    result. A drill that cannot be simulated is refused at the start.

    Exit status: 0 every seed passed, 5 one deviated, 4 one was inconclusive, 1 failed.

    Example: imctl drill simulate idc-loss --seeds 200
    """
    from services.sim.region import PLACES

    wanted = model.load_drill(model.find(name))
    values = model.with_values(wanted, _pairs(var or []))
    if refused := list(simulable.refusals(wanted, values, PLACES)):
        raise Failed("\n".join(f"{wanted.path}: {line}" for line in refused))
    found = _simulated(wanted, values, range(first, first + seeds), jobs or os.cpu_count() or 1)
    document = spread.document(wanted.name, wanted.title, values, found)
    emit(document, output, lambda: spread_view.view(wanted.name, found))
    outcomes = spread.outcomes(found)
    if "deviated" in outcomes:
        raise typer.Exit(errors.DEVIATED)
    if spread.ERROR in outcomes:
        raise typer.Exit(errors.ERROR)
    if set(outcomes) != {"pass"}:
        raise typer.Exit(errors.UNKNOWN)


def _simulated(wanted: Drill, values: dict[str, Any], seeds: range, jobs: int) -> list[spread.Seed]:
    """In the order of the seeds. Raises Failed."""
    from imctl.drill.simulated import play_apart
    from services.sim.apart import outcomes

    play = functools.partial(play_apart, drill=wanted, values=values)
    found: list[spread.Seed] = []
    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(),
        progress.MofNCompleteColumn(), progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    screen = notes()
    with progress.Progress(
        *columns, console=screen, transient=True, disable=not screen.is_terminal
    ) as bar:
        task = bar.add_task(wanted.name, total=len(seeds))
        try:
            for one in outcomes(play, seeds, jobs):
                found.append(one)
                if one.outcome != "pass":
                    screen.print(Text(f"seed {one.seed}: {one.outcome}: {one.reason}"))
                bar.advance(task)
        except BrokenProcessPool as error:
            raise Failed("a simulation process was killed; is there enough memory?") from error
    return sorted(found, key=lambda one: one.seed)


@drill.command()
def run(
    name: Name,
    out: Out = None,
    var: Var = None,
    data: Data = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only run the preflight checks; change nothing.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Random seed of the clients and their messages.")
    ] = None,
    by: Annotated[
        Runner,
        typer.Option(help="Who runs it: imctl itself, or on Kubernetes the operator (a DrillRun)."),
    ] = Runner.IMCTL,
) -> None:
    """Run a drill on a deployment and judge the result.

    With --by operator, the report is a ConfigMap of the cluster; --out copies it here.

    Exit status: 0 pass, 5 deviated, 4 inconclusive, 3 refused by the preflight checks, 6 aborted
    and everything undone.

    Example: imctl drill run idc-loss --out report
    """
    wanted = model.load_drill(model.find(name))
    values = model.with_values(wanted, _pairs(var or []))
    target = deployment.find(data)
    ask = None
    if by is Runner.OPERATOR:
        ask = _by_operator(target, wanted, _pairs(var or []), seed)
    if ask is None or dry_run:  # the operator makes these checks itself
        _preflight(target, wanted, values)
    print(f"{wanted.name}: {wanted.title}")
    for name_, value in values.items():
        print(f"  {name_} = {value}")
    if dry_run:
        print("the preflight checks passed")
        return
    if not yes:
        typer.confirm(
            f"Run {wanted.name} on {target.region.metadata.name}, under load?", abort=True, err=True
        )
    if ask is not None:
        raise typer.Exit(ask(out))
    report, folder = _run(target, wanted, values, out, seed)
    screen = console()
    style = "bold green" if report.ok else "bold red"
    screen.print(Text(report.line, style=style), soft_wrap=True)  # one line, however long
    screen.print(_summary(report))
    print(f"report: {folder / 'report.html'}")
    status = {
        "pass": errors.OK,
        "deviated": errors.DEVIATED,
        "aborted": errors.ABORTED,
    }.get(report.outcome, errors.UNKNOWN)
    if report.left:
        status = errors.DEVIATED
    raise typer.Exit(status)


def _by_operator(
    target: Local, wanted: Drill, given: dict[str, str], seed: int | None
) -> Callable[[Path | None], int]:
    """What asks for it and follows it; returns the command's status."""
    if not target.on_pods:
        raise BadInput(
            "--by: expected imctl, got operator: imctl has not brought this deployment to "
            "Kubernetes"
        )
    if seed is not None:
        raise BadInput("--seed: a DrillRun has none; run it with --by imctl")
    # A client of Kubernetes takes its time to load: only for those who have one.
    from imctl.drill import asked
    from imctl.target.kubernetes import Kubernetes

    assert isinstance(target, Kubernetes)
    wish = asked.prepare(target, wanted, given)

    def ask(out: Path | None) -> int:
        found = asyncio.run(asked.run(wish, out, SystemClock()))
        said = found.said
        print(f"{said.get('verdict')}: {said.get('reason')}")
        if said.get("rto_s") is not None:
            print(f"  RTO {said['rto_s']:.2f} s")
        if said.get("lost") is not None:
            print(f"  canary messages lost {said['lost']}, delayed {said.get('delayed', 0)}")
        for each in said.get("left", ()):
            print(f"  not undone: {each}")
        if said.get("report"):
            print(f"report: {out or 'ConfigMap ' + found.place.namespace + '/' + said['report']}")
        return found.status

    return ask


def _pairs(given: list[str]) -> dict[str, str]:
    pairs = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise BadInput(f"--var: expected NAME=VALUE, got {one!r}")
        pairs[name] = value
    return pairs


def _preflight(target: Local, wanted: Drill, values: dict[str, Any]) -> None:
    """Undoes what an earlier drill has left. Raises Guarded with all that stands against it."""
    from imctl.drill import running

    async def look() -> preflight.Seen:
        left = [] if RunLock(target.data).held() else await running.leftovers(target)
        return await preflight.look(target, left)

    seen = asyncio.run(look())
    target.look_again()
    found = preflight.blockers(target.region, wanted, values, seen, datetime.now(UTC))
    if found:
        lines = "\n".join(f"  {one.rule}: {one.sentence}" for one in found)
        raise Guarded(f"the preflight checks of {wanted.name} failed:\n{lines}")


def _run(
    target: Local, wanted: Drill, values: dict[str, Any], out: Path | None, seed: int | None
) -> tuple[DrillReport, Path]:
    from imctl.drill import runner, running
    from imctl.report.live import make_view

    run_id = running.new_id()
    folder = out or running.runs_folder(target) / run_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot write in {folder}: {error.strerror}; choose another --out"
        ) from error
    screen = console()
    with make_view(screen, [idc.name for idc in target.region.spec.idcs]) as view:
        prepared = running.Run(wanted, run_id, target, folder, view, values)
        prepared.seed = random.randrange(1_000_000) if seed is None else seed
        return runner.run(prepared), folder


def _summary(report: DrillReport) -> RenderableType:
    parts: list[RenderableType] = [
        Text(f"  {found.outcome}: {found.sentence}", style="yellow")
        for found in report.findings[1:8]
    ]
    promises = Table(box=box.SIMPLE)
    promises.add_column("promise", ratio=3, overflow="fold")
    promises.add_column("limit", no_wrap=True)
    promises.add_column("measured", ratio=3, overflow="fold")
    promises.add_column("", no_wrap=True)
    for one in report.run.promises:
        held = Text("ok", style="green") if one.ok else Text("NO", style="bold red")
        promises.add_row(one.name, one.limit, one.measured, held)
    parts.append(promises)
    for recovered in report.recoveries:
        steps = ", ".join(
            f"{step} {rows.seconds(at)}" for step, at in recovered.steps.items() if at is not None
        )
        parts.append(Text(f"{recovered.idc}, seconds since the fault: {steps}"))
    parts += [_ledger(report), Text(f"hypothesis: {rows.hypothesis(report)}")]
    parts += [Text(f"note: {note}", style="yellow") for note in report.run.notes]
    return Group(*parts)


def _ledger(report: DrillReport) -> Table:
    table = Table(box=box.SIMPLE, title="canary messages")
    for number, column in enumerate(rows.LEDGER_HEAD):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows.ledger_rows(report):
        table.add_row(*map(str, row))
    return table


@drill.command()
def abort(data: Data = None) -> None:
    """Abort the running drill and undo all faults of it and of earlier drills.

    Example: imctl drill abort
    """
    from imctl.drill import running

    target = deployment.find(data)
    lock, book = RunLock(target.data), FaultBook(target.data)
    faults = book.read().faults
    if lock.held():
        holder = lock.holder()
        if holder is None or not process.send(holder, signal.SIGTERM):
            print("another process is undoing the faults of a drill; waiting for it")
        deadline = time.monotonic() + ABORT_S
        while lock.held():
            if time.monotonic() > deadline:
                raise Failed(f"the drill did not end within {ABORT_S:g} s; see `imctl status`")
            time.sleep(0.2)
    target.look_again()
    if problems := asyncio.run(running.leftovers(target)):
        raise Failed("; ".join(problems))
    for fault in faults:
        print(f"{fault.sentence}: {fault.undoing()}")
    print(f"undone: {len(faults)} faults" if faults else "there are no faults to undo")


@drill.command()
def report(
    run_id: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run of `imctl drill history` [default: the last]."),
    ] = None,
    out: CopyTo = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of reports.")
    ] = False,
    data: Data = None,
) -> None:
    """Show the report of a run, or copy its files to a folder.

    Example: imctl drill report --out /tmp/drill
    """
    import json

    if schema:
        print(json.dumps(rows.schema(), indent=2))
        return
    folder = Path(_one_run(data, run_id)["report"])
    if out is None:
        print(_read(folder / "report.md"), end="")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (folder / name).exists():
                shutil.copyfile(folder / name, out / name)
    except OSError as error:
        raise BadInput(f"cannot write in {out}: {error.strerror}") from error
    print(f"report: {out / 'report.html'}")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise Failed(f"cannot read {path}: {error.strerror}") from error


def _one_run(data: Path | None, run_id: str | None) -> dict[str, Any]:
    found = records.read(_runs(data))
    chosen = [row for row in found if run_id in (None, row["run"])]
    if not chosen:
        which = f"no run {run_id}" if run_id else "no drill run yet"
        raise Failed(f"{which}; see `imctl drill history`")
    return chosen[-1]


def _runs(data: Path | None) -> Path:
    from imctl.drill import running

    return running.runs_folder(deployment.find(data))


@drill.command()
def history(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only runs of this drill.")
    ] = None,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """List the drill runs on a deployment, oldest first.

    Example: imctl drill history idc-loss -o json
    """
    found = [row for row in records.read(_runs(data)) if name in (None, row["drill"])]

    def table() -> Table:
        view = Table("RUN", "DRILL", "STARTED", "RTO", "VERDICT", box=None, pad_edge=False)
        for row in found:
            rto = rows.seconds(row["rto_s"])
            verdict = row["outcome"] + ("" if row["outcome"] == "pass" else f": {row['reason']}")
            view.add_row(row["run"], row["drill"], row["started"][:19], rto, verdict)
        return view

    emit(found, output, table)


@drill.command()
def schedule(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Cron lines and blackout windows.")],
    run: Annotated[
        bool, typer.Option("--run", help="Run each drill when it is due, until Ctrl-C.")
    ] = False,
    count: Annotated[
        int, typer.Option(metavar="N", min=1, help="Number of due times to show.")
    ] = 10,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Show when the drills of a schedule are due, or run them then (--run).

    A drill is skipped, with a message, if it is due in a blackout window, if its preflight checks
    fail, or if it could not start within five minutes.

    Example: imctl drill schedule regions/drills/schedules/weekly.yaml
    """
    from imctl.drill import keeper
    from imctl.drill import schedule as schedules

    found = schedules.load_schedule(file)

    def now() -> datetime:
        return datetime.now(UTC)

    def table() -> Table:
        view = Table("DUE (UTC)", "DRILL", "VARIABLES", "", box=None, pad_edge=False)
        for row in rows_:
            pairs = " ".join(f"{name}={value}" for name, value in row["var"].items())
            left_out = f"skipped: {row['left_out']}" if row["left_out"] else ""
            view.add_row(row["due"][:16].replace("T", " "), row["drill"], pairs, left_out)
        return view

    if not run:
        rows_: list[dict[str, Any]] = [
            {
                "due": due.at.isoformat(),
                "drill": due.entry.drill,
                "var": due.entry.var,
                "left_out": due.blackout.reason if due.blackout else None,
            }
            for due in islice(schedules.dues(found, now()), count)
        ]
        emit(rows_, output, table)
        return
    target = deployment.find(data)

    def begin(due: schedules.Due) -> int:
        """As a process of its own, so that nothing of one drill is left in the next."""
        given = [f"--var={name}={value}" for name, value in due.entry.var.items()]
        command = [sys.executable, "-m", "imctl", "drill", "run", due.entry.drill, "--yes", *given]
        return keeper.until_ended(subprocess.Popen([*command, "--data", str(target.data)]))

    keeper.keep(found, now, time.sleep, begin, lambda line: print(line, flush=True))
