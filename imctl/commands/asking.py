"""What the commands that change traffic share: judge, ask, commit, wait."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from imcore.errors import BadInput
from imcore.runtime import SystemClock
from imctl import deployment
from imctl.errors import Guarded
from imctl.loss import Loss, as_document, estimate
from imctl.options import Format
from imctl.opwatch import conclude, until_ended
from imctl.output import emit
from imctl.traffic import Control, Judged, document_of
from services.control.evaluate import Decision
from services.control.rules import Change, Kind
from services.policy.document import IdcState

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


@dataclass(frozen=True, slots=True)
class Asking:
    """How a change is asked for: what the flags of all these commands say."""

    dry_run: bool
    yes: bool
    output: Format
    data: Path | None
    wait: bool | None = None  # None: what it begins ends at once
    timeout_s: float = 0.0


def run_change(change: Change, how: Asking) -> None:
    """Judge, ask, commit, wait. Raises Guarded for a refusal, OutcomeUnknown for a time-out,
    Aborted or Failed when the operation that was waited for is not done."""

    async def judge(control: Control) -> Judged:
        _check(change, control)
        return await control.judge(change)

    async def submit(control: Control) -> Decision:
        decision = await control.submit(change)
        _show(decision, None, how)
        if decision.policy is not None and decision.operation and how.wait:
            ended = await until_ended(control, decision.operation, how.timeout_s, shown=1)
            typer.echo(conclude(ended), err=True)
        return decision

    judged = with_control(how.data, judge)
    decision = judged.decision
    loss = _loss(change, judged)
    if loss is not None and (decision.policy is not None or how.dry_run):
        typer.echo("\n".join(loss.lines()), err=True)
    if how.dry_run:
        _show(decision, loss, how)
    elif decision.policy is None:
        # Asked for real as well, so that the refusal stands in the audit; it may even pass now.
        decision = with_control(how.data, submit)
    elif how.yes or _confirmed(decision):
        decision = with_control(how.data, submit)
    if decision.policy is None:
        raise Guarded(decision.sentence)


def _check(change: Change, control: Control) -> None:
    """Raises BadInput."""
    for name in (change.idc, change.target):
        if name and name not in control.idcs:
            raise BadInput(f"expected one of {', '.join(control.idcs)}, got {name!r}")
    limit = control.region.spec.safety.replication_lag_ms_max
    if change.max_lag_ms > limit:
        raise BadInput(
            f"--max-lag: expected at most {limit}, got {change.max_lag_ms}: it only tightens "
            "safety.replication_lag_ms_max of the region file"
        )


def _loss(change: Change, judged: Judged) -> Loss | None:
    if change.kind != Kind.FAILOVER:
        return None
    policy = judged.policy
    out = (IdcState.FAILED, IdcState.RETIRED)
    names = [name for name in policy.idcs if name != change.idc and policy.state(name) not in out]
    return estimate(judged.evidence, change.idc, names)


def _confirmed(decision: Decision) -> bool:
    """Ends the command when the answer is no."""
    return typer.confirm(f"{decision.sentence}. Commit?", abort=True, err=True)


def _show(decision: Decision, loss: Loss | None, how: Asking) -> None:
    """A refusal as a table is the error line itself. Nobody waits: standard output is the
    operation's id alone, for scripts."""
    if how.output is not Format.TABLE:
        document = document_of(decision, how.dry_run)
        if loss is not None:
            document["estimated_loss"] = as_document(loss)
        emit(document, how.output, str)
    elif decision.policy is None:
        return
    elif how.dry_run:
        print(f"would commit: {decision.sentence}")
    elif how.wait is False and decision.operation:
        typer.echo(decision.sentence, err=True)
        print(decision.operation)
    else:
        print(decision.sentence)
