"""cordon, uncordon, drain, undrain, switchover, failover, failback, retire; op.

Every command only *asks*: the evaluator judges the change against the policy, fresh evidence and
the region's safety rules, and names all that stands against it. The controllers carry it out.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Group, RenderableType
from rich.table import Table

from imcore.errors import BadInput, OutcomeUnknown
from imcore.runtime import SystemClock
from imctl import deployment
from imctl.errors import Failed, Guarded
from imctl.options import Data, Format, IdcName, Output
from imctl.output import emit
from imctl.traffic import Control, document_of
from services.control.evaluate import Decision
from services.control.operations import Operation, State
from services.control.rules import Change, Kind

Epoch = Annotated[
    int, typer.Option("--expect-epoch", min=0, help="Refuse unless the policy is at it; 0: any.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Judge it, change nothing.")]
Override = Annotated[
    str | None,
    typer.Option(metavar="RULE-ID", help="Pass this one rule; it is recorded with the operation."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Until the operation has ended.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds to wait for its end.")]

T = TypeVar("T")
TICK_S = 0.5
WAIT_S = 120.0


def cordon(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Send no new clients to an IDC; those who are there stay.

    Example: imctl cordon fra
    """
    change = _change(Kind.CORDON, idc, "", expect_epoch, override)
    _run(change, dry_run, yes, False, 0.0, output, data)


def uncordon(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Send new clients to a cordoned IDC again.

    Example: imctl uncordon fra
    """
    change = _change(Kind.UNCORDON, idc, "", expect_epoch, override)
    _run(change, dry_run, yes, False, 0.0, output, data)


def drain(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move every client away from an IDC, to where each would go next; nothing is lost.

    Example: imctl drain fra --dry-run
    """
    change = _change(Kind.DRAIN, idc, "", expect_epoch, override)
    _run(change, dry_run, yes, wait, timeout, output, data)


def undrain(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Stop a drain that is under way; the IDC serves again. A drained IDC: `imctl failback`.

    Example: imctl undrain fra
    """
    change = _change(Kind.UNDRAIN, idc, "", expect_epoch, override)
    _run(change, dry_run, yes, False, 0.0, output, data)


def switchover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC to empty.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The IDC that takes its clients.")],
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Move an IDC's clients to another one; nothing is lost and no send fails.

    Example: imctl switchover fra iad
    """
    change = _change(Kind.SWITCHOVER, source, target, expect_epoch, override)
    _run(change, dry_run, yes, wait, timeout, output, data)


def failover(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The IDC that is lost.")],
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Declare an IDC failed: its clients go elsewhere at once. An IDC that works: drain it.

    Example: imctl failover fra --dry-run
    """
    change = _change(Kind.FAILOVER, source, "", expect_epoch, override)
    _run(change, dry_run, yes, False, 0.0, output, data)


def failback(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    wait: Wait = True,
    timeout: Timeout = WAIT_S,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Return traffic to an IDC that was failed or drained, in steps, once it has caught up.

    Example: imctl failback fra
    """
    change = _change(Kind.FAILBACK, idc, "", expect_epoch, override)
    _run(change, dry_run, yes, wait, timeout, output, data)


def retire(
    idc: IdcName,
    expect_epoch: Epoch = 0,
    override: Override = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Give up an IDC that is failed or drained: nobody keeps logs for it any longer.

    When it returns, it starts from another IDC's snapshot, and `failback` gives it clients.

    Example: imctl retire fra
    """
    change = _change(Kind.RETIRE, idc, "", expect_epoch, override)
    _run(change, dry_run, yes, False, 0.0, output, data)


op = typer.Typer(
    help="Look at operations and their evidence.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)


@op.command("list")
def op_list(output: Output = Format.TABLE, data: Data = None) -> None:
    """The last operations, oldest first.

    Example: imctl op list -o json
    """

    async def read(control: Control) -> list[Operation]:
        names = (await control.policy()).history
        found = [await control.operation(name) for name in names]
        return [each for each in found if each is not None]

    operations = _with_control(data, read)

    def table() -> Table:
        view = Table("ID", "STATE", "STARTED", "SECONDS", "BY", "STEPS", box=None, pad_edge=False)
        for each in operations:
            seconds = f"{(each.ended_ms - each.started_ms) / 1000:.1f}" if each.ended_ms else "-"
            started = _time(each.started_ms)
            view.add_row(each.id, each.state, started, seconds, each.by, str(len(each.steps)))
        return view

    emit([_plain(each) for each in operations], output, table)


@op.command("show")
def op_show(
    name: Annotated[str, typer.Argument(metavar="ID", help="As `imctl op list` shows it.")],
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """One operation: its steps, each with the evidence it rested on.

    Example: imctl op show drain-fra-7
    """

    async def read(control: Control) -> Operation | None:
        return await control.operation(name)

    found = _with_control(data, read)
    if found is None:
        raise Failed(f"there is no operation {name}; `imctl op list` shows which there are")
    emit(_plain(found), output, lambda: _operation_view(found))


def _plain(operation: Operation) -> dict[str, Any]:
    document = asdict(operation)
    document["state"] = str(operation.state)
    document["steps"] = [dict(step) for step in document["steps"]]
    return document


def _operation_view(operation: Operation) -> RenderableType:
    head = f"{operation.id}: {operation.state}, by {operation.by} (request {operation.request_id})"
    table = Table("TIME", "EPOCH", "STEP", box=None, pad_edge=False)
    for step in operation.steps:
        table.add_row(_time(step.at_ms), str(step.epoch), step.sentence)
        for name, facts in dict(step.evidence.get("idcs", {})).items():
            lag = max(facts.get("lag_ms", {}).values(), default=0)
            table.add_row(
                "",
                "",
                f"  {name}: {facts['sessions']} sessions, lag {lag} ms, seen {facts['age_ms']} ms "
                f"before{'' if facts['serving'] else ', not serving'}",
            )
        for vote in step.evidence.get("votes", []):
            table.add_row("", "", f"  vote of {vote['voter']}: {vote['said']}")
        for rule in step.evidence.get("overridden", []):
            table.add_row("", "", f"  overridden: {rule['rule']} ({rule['sentence']})")
    return Group(head, table)


# ------------------------------------------------------------------------------------ shared


def _change(kind: str, idc: str, target: str, epoch: int, override: str | None) -> Change:
    return Change(
        kind=kind,
        idc=idc,
        request_id=secrets.token_hex(8),
        by="operator",
        target=target,
        expect_epoch=epoch,
        overrides=(override,) if override else (),
    )


def _with_control(data: Path | None, work: Callable[[Control], Awaitable[T]]) -> T:
    target = deployment.find(data)

    async def run() -> T:
        async with Control(target, SystemClock(), random.Random()) as control:
            return await work(control)

    return asyncio.run(run())


def _run(
    change: Change,
    dry_run: bool,
    yes: bool,
    wait: bool,
    timeout_s: float,
    output: Format,
    data: Path | None,
) -> None:
    """Judge, ask, commit, wait. Raises Guarded for a refusal, OutcomeUnknown for a time-out."""

    async def judge(control: Control) -> Decision:
        for name in (change.idc, change.target):
            if name and name not in control.idcs:
                raise BadInput(f"expected one of {', '.join(control.idcs)}, got {name!r}")
        return await control.judge(change)

    async def submit(control: Control) -> Decision:
        decision = await control.submit(change)
        _show(decision, False, output)
        if decision.policy is not None and wait and decision.operation:
            await _until_ended(control, change.idc, decision.operation, timeout_s)
        return decision

    decision = _with_control(data, judge)
    if dry_run:
        _show(decision, True, output)
    elif decision.policy is None:
        # Asked for real as well, so that the refusal stands in the audit; it may even pass now.
        decision = _with_control(data, submit)
    elif yes or _confirmed(decision):
        decision = _with_control(data, submit)
    if decision.policy is None:
        raise Guarded(decision.sentence)


def _confirmed(decision: Decision) -> bool:
    """Ends the command when the answer is no."""
    return typer.confirm(f"{decision.sentence}. Commit?", abort=True, err=True)


def _show(decision: Decision, dry_run: bool, output: Format) -> None:
    """A refusal as a table is the error line itself."""
    if output is not Format.TABLE:
        emit(document_of(decision, dry_run), output, str)
    elif decision.policy is not None:
        print(f"would commit: {decision.sentence}" if dry_run else decision.sentence)


async def _until_ended(control: Control, idc: str, name: str, timeout_s: float) -> None:
    """A line on standard error for each step, and each time the number of sessions changed."""
    shown, sessions = 1, None
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                operation = await control.operation(name)
                for step in operation.steps[shown:] if operation else ():
                    typer.echo(f"{_time(step.at_ms)} {step.sentence}", err=True)
                    shown += 1
                if operation is not None and operation.state is not State.RUNNING:
                    break
                now = await control.sessions(idc)
                if now != sessions:
                    sessions = now
                    left = "no answer" if now is None else f"{now} sessions"
                    typer.echo(f"{datetime.now():%H:%M:%S} {idc}: {left}", err=True)
                await asyncio.sleep(TICK_S)
    except TimeoutError:
        raise OutcomeUnknown(
            f"{name} has not ended after {timeout_s:g} s and goes on; `imctl op show {name}`"
        ) from None
    if operation.state is State.ENDED_EARLY:
        raise Failed(f"{name} ended early; `imctl op show {name}` says why")
    typer.echo(f"{name} is done", err=True)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).strftime("%H:%M:%S")
