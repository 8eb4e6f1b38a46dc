"""op: operations that move traffic, as any imctl can see and steer them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from imctl.commands.asking import Asking, DryRun, Override, Yes, run_change, with_control
from imctl.divergenceview import lines as divergence_lines
from imctl.errors import Failed
from imctl.group import Commands
from imctl.options import Data, Format, Output
from imctl.opwatch import conclude, stuck_words, until_ended
from imctl.output import emit, time_of_day
from imctl.reconcile.traffic import object_of
from imctl.traffic import Control
from services.control.operations import Operation
from services.control.rules import Change, Kind
from services.control.slow import Slow

Name = Annotated[str, typer.Argument(metavar="ID", help="Operation id (see `imctl op list`).")]
UnderWay = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="Operation id (see `imctl op list`) [default: the one in progress].",
        show_default=False,
    ),
]  # fmt: skip

op = typer.Typer(
    cls=Commands,
    help="Show, pause, resume, abort or approve operations.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@op.command("list")
def op_list(output: Output = Format.TABLE, data: Data = None) -> None:
    """List the last operations, oldest first.

    States: running, paused by operator, paused by failed step, waiting for approval, done, done
    with exceptions (clients had to be disconnected), failed (a failover or an override ended it),
    aborted, unknown. A step counts as slow when it takes more than twice the 75th percentile of
    earlier steps of that name (at least 5 s; 60 s with fewer than three earlier steps).

    Example: imctl op list -o json
    """
    timed = with_control(data, _timed)

    def table() -> Table:
        view = Table("ID", "STATE", "STARTED", "SECONDS", "BY", "STEPS", box=None, pad_edge=False)
        for each, slow in timed:
            seconds = f"{(each.ended_ms - each.started_ms) / 1000:.1f}" if each.ended_ms else "-"
            started = time_of_day(each.started_ms) if each.started_ms else "-"
            steps = str(len(each.steps)) + (f", slow: {_names(slow)}" if slow else "")
            view.add_row(each.id, each.state, started, seconds, each.by, steps)
        return view

    emit([_plain(each, slow) for each, slow in timed], output, table)


@op.command("show")
def op_show(name: Name, output: Output = Format.TABLE, data: Data = None) -> None:
    """Show one operation: its steps, and the evidence behind each.

    NAMESPACE/NAME of a TrafficOperation is an id, too.

    Example: imctl op show drain-fra-7
    """

    async def look(control: Control) -> tuple[Operation, list[Slow]]:
        found = await _found(control, name)
        return found, control.slow(found, await control.operations())

    found, slow = with_control(data, look)
    emit(_plain(found, slow), output, lambda: _view(found, slow))


@op.command("watch")
def op_watch(
    name: UnderWay = "",
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="Maximum time to watch.")
    ] = 3600.0,
    data: Data = None,
) -> None:
    """Follow an operation until it ends.

    Prints each step with its duration. Between steps it shows how many sessions remain, how many
    sessions that were asked to move are stuck at which gateway, and which step is slow.

    Exit status: 0 done, 1 done with exceptions or failed, 4 not ended or unknown, 6 aborted.

    Example: imctl op watch drain-fra-7
    """

    async def watch(control: Control) -> Operation:
        return await until_ended(control, await _named(control, name), timeout)

    typer.echo(conclude(with_control(data, watch)), err=True)


@op.command("pause")
def op_pause(
    name: UnderWay = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Pause an operation: no more sessions are moved and no further step is taken.

    Example: imctl op pause drain-fra-7
    """
    _steer(Kind.PAUSE, name, None, Asking(dry_run, yes, output, data))


@op.command("resume")
def op_resume(
    name: UnderWay = "",
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Resume a paused operation, if the safety rules would allow it to start now.

    Example: imctl op resume drain-fra-7
    """
    _steer(Kind.RESUME, name, override, Asking(dry_run, yes, output, data))


@op.command("abort")
def op_abort(
    name: UnderWay = "",
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Abort an operation: undo a drain or switchover, or stop a failback where it is.

    `imctl failback` continues an aborted failback.

    Example: imctl op abort switchover-fra-7
    """
    _steer(Kind.ABORT, name, override, Asking(dry_run, yes, output, data))


@op.command("approve")
def op_approve(
    name: UnderWay = "",
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Approve a move that waits for approval (`safety.approval` of the region file).

    The move starts if the safety rules still allow it.

    Example: imctl op approve switchover-fra-7
    """
    _steer(Kind.APPROVE, name, override, Asking(dry_run, yes, output, data))


def _steer(kind: str, name: str, override: str | None, how: Asking) -> None:
    request_id = secrets.token_hex(8)
    overrides = (override,) if override else ()

    async def wish(control: Control) -> Change:
        steered = await _named(control, name)
        return Change(kind, "", request_id, "operator", overrides=overrides, operation=steered)

    run_change(with_control(how.data, wish), how)


async def _named(control: Control, name: str) -> str:
    """Raises Failed."""
    if name:
        return (await _found(control, name)).id
    running = (await control.policy()).operation
    if running is None:
        raise Failed("no operation is under way; see `imctl op list`")
    return running.id


async def _found(control: Control, name: str) -> Operation:
    found = await control.operation(name)
    if found is None and "/" in name:  # of the object by which it was asked for
        known = [each for each in await control.operations() if object_of(each.by) == name]
        found = known[-1] if known else None
    if found is None:
        raise Failed(f"there is no operation {name}; see `imctl op list`")
    return found


async def _timed(control: Control) -> list[tuple[Operation, list[Slow]]]:
    operations = await control.operations()
    return [(each, control.slow(each, operations)) for each in operations]


def _names(slow: Iterable[Slow]) -> str:
    return ", ".join(each.took.name for each in slow)


def _plain(operation: Operation, slow: Iterable[Slow]) -> dict[str, Any]:
    document = asdict(operation)
    document["state"] = str(operation.state)
    document["object"] = object_of(operation.by)
    document["steps"] = [dict(step) for step in document["steps"]]
    document["slow"] = [
        {
            "step": each.took.step,
            "name": each.took.name,
            "took_ms": each.took.ms,
            "over": each.took.over,
            "limit_ms": each.usual.limit_ms,
            "samples": each.usual.samples,
        }
        for each in slow
    ]
    return document


def _view(operation: Operation, slow: Iterable[Slow]) -> RenderableType:
    head = f"{operation.id}: {operation.state}"
    if operation.by:
        head += f", by {operation.by} (request {operation.request_id})"
    if operation.rate:
        head += f", {operation.rate} sessions/s"
    if operation.max_lag_ms:
        head += f", lag at most {operation.max_lag_ms} ms"
    table = Table("TIME", "EPOCH", "STEP", box=None, pad_edge=False)
    late = {each.took.step: each.sentence() for each in slow}
    for number, step in enumerate(operation.steps):
        table.add_row(time_of_day(step.at_ms), str(step.epoch), step.sentence)
        if number in late:
            table.add_row("", "", f"  {late[number]}")
        for name, facts in dict(step.evidence.get("idcs", {})).items():
            lag = max(facts.get("lag_ms", {}).values(), default=0)
            closed = f", {facts['closed']} closed" if facts.get("closed") else ""
            hang = f", {stuck_words(facts['stuck'])}" if facts.get("stuck") else ""
            table.add_row(
                "",
                "",
                f"  {name}: {facts['sessions']} sessions{closed}{hang}, lag {lag} ms, seen "
                f"{facts['age_ms']} ms earlier{'' if facts['serving'] else ', not serving'}",
            )
        if "divergence" in step.evidence:
            for line in divergence_lines(step.evidence["divergence"]):
                table.add_row("", "", f"  {line}")
        for vote in step.evidence.get("votes", []):
            table.add_row("", "", f"  vote of {vote['voter']}: {vote['said']}")
        for rule in step.evidence.get("overridden", []):
            table.add_row("", "", f"  overridden: {rule['rule']} ({rule['sentence']})")
    return Group(head, table)
