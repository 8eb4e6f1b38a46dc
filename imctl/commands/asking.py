"""What the commands that change traffic share: judge, ask, commit, wait."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from imcore.errors import BadInput
from imcore.runtime import SystemClock
from imctl import deployment
from imctl.errors import Guarded
from imctl.options import Format
from imctl.opwatch import conclude, until_ended
from imctl.output import emit
from imctl.traffic import Control, document_of
from services.control.evaluate import Decision
from services.control.rules import Change

DryRun = Annotated[bool, typer.Option("--dry-run", help="Judge it, change nothing.")]
Override = Annotated[
    str | None,
    typer.Option(metavar="RULE-ID", help="Pass this one rule; it is recorded with the operation."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

T = TypeVar("T")


def with_control(data: Path | None, work: Callable[[Control], Awaitable[T]]) -> T:
    target = deployment.find(data)

    async def run() -> T:
        async with Control(target, SystemClock(), random.Random()) as control:
            return await work(control)

    return asyncio.run(run())


def run_change(
    change: Change,
    dry_run: bool,
    yes: bool,
    wait: bool,
    timeout_s: float,
    output: Format,
    data: Path | None,
) -> None:
    """Judge, ask, commit, wait. Raises Guarded for a refusal, OutcomeUnknown for a time-out,
    Aborted or Failed when the operation that was waited for is not done."""

    async def judge(control: Control) -> Decision:
        for name in (change.idc, change.target):
            if name and name not in control.idcs:
                raise BadInput(f"expected one of {', '.join(control.idcs)}, got {name!r}")
        return await control.judge(change)

    async def submit(control: Control) -> Decision:
        decision = await control.submit(change)
        _show(decision, False, output)
        if decision.policy is not None and wait and decision.operation:
            ended = await until_ended(control, decision.operation, timeout_s, shown=1)
            typer.echo(conclude(ended), err=True)
        elif decision.policy is not None and decision.policy.operation is not None:
            typer.echo(f"operation {decision.operation}: `imctl op watch`", err=True)
        return decision

    decision = with_control(data, judge)
    if dry_run:
        _show(decision, True, output)
    elif decision.policy is None:
        # Asked for real as well, so that the refusal stands in the audit; it may even pass now.
        decision = with_control(data, submit)
    elif yes or _confirmed(decision):
        decision = with_control(data, submit)
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
