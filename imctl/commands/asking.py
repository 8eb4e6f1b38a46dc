"""What the commands that change traffic share: judge, ask, commit, wait."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer
from rich.text import Text

from imcore.errors import BadInput
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imctl import admin, deployment
from imctl.divergenceview import Hashes, hash_lines, hashes_document
from imctl.divergenceview import lines as divergence_lines
from imctl.errors import Guarded
from imctl.look import Looker
from imctl.loss import Loss, estimate
from imctl.loss import as_document as loss_document
from imctl.moveplan import MOVES, plan_lines, question, refusal_lines
from imctl.moveplan import as_document as plan_document
from imctl.options import By, Format
from imctl.opwatch import conclude, until_ended, until_followed
from imctl.output import emit, notes
from imctl.overriding import known_rule
from imctl.statusview import idc_table
from imctl.traffic import Control, Judged, document_of
from imctl.ways import choose
from services.control.divergence import Divergence, compare
from services.control.divergence import as_document as divergence_document
from services.control.evaluate import Decision, evaluate
from services.control.predict import Forecast
from services.control.predict import forecast as foresee
from services.control.rules import Change, Kind
from services.policy.document import IdcState, OperationState, Policy

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; change nothing.")]
Override = Annotated[
    str | None,
    typer.Option(
        metavar="RULE-ID",
        help="Override this safety rule; recorded with the operation.",
        callback=known_rule,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]

T = TypeVar("T")
FOLLOW_TRIES = 5  # a commit is known in the IDCs within half a second
_GONE = frozenset({IdcState.FAILED, IdcState.RETIRED})


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
    hashes: bool = False  # compare the replicated state as well
    by: By | None = None  # of a move: who asks for it
    reason: str = ""


class Preview(NamedTuple):
    """What a change would bring, as far as its kind has something to foresee."""

    forecast: Forecast | None
    loss: Loss | None
    divergence: Divergence | None
    hashes: Hashes | None


def run_change(change: Change, how: Asking) -> None:
    """Judge, show, ask, commit, wait, show. Raises Guarded for a refusal, OutcomeUnknown for a
    time-out, Aborted or Failed when the operation that was waited for is not done."""

    async def judge(control: Control) -> tuple[Judged, bool]:
        _check(change, control)
        return await control.judge(change), control.permits(change)

    async def submit(control: Control) -> Decision:
        async with way as asked:
            decision = await asked.submit(control, change, judged.policy.epoch)
            _show(decision, None, how)
            if decision.policy is not None and decision.operation and how.wait:
                if change.kind == Kind.FAILOVER:  # ends by its commit
                    epoch = decision.policy.epoch
                    who = await until_followed(control, epoch, change, how.timeout_s)
                    await asked.settle()
                    typer.echo(f"{', '.join(who)} follow the new policy", err=True)
                else:
                    ended = await until_ended(control, decision.operation, how.timeout_s, shown=1)
                    await asked.settle()
                    typer.echo(conclude(ended) + _against(change, preview), err=True)
        if decision.policy is not None and how.wait is not False:
            await _show_topology(change, how, (await control.policy()).epoch)
        return decision

    judged, permitted = with_control(how.data, judge)
    decision = judged.decision
    way = choose(deployment.find(how.data), change, how.by, how.reason)
    preview = _preview(change, judged, how)
    _show_before(change, decision, preview, how)
    if how.dry_run:
        _show(decision, preview, how)
    elif decision.policy is None and not way.asks_itself:
        _show(decision, None, how)
    elif way.asks_itself and (not permitted or (decision.policy is None and how.yes)):
        # Asked for real as well, so that the refusal stands in the audit; it may even pass now.
        decision = with_control(how.data, submit)
    elif decision.policy is None:  # nobody has said yes to what may pass by now
        with_control(how.data, lambda control: control.note(change, judged))
        _show(decision, None, how)
    elif how.yes or typer.confirm(question(change, preview.forecast), abort=True, err=True):
        decision = with_control(how.data, submit)
    if decision.policy is None:
        raise Guarded(decision.sentence)


def _check(change: Change, control: Control) -> None:
    """Raises BadInput."""
    for name in (change.idc, change.target):
        if name and name not in control.idcs:
            raise BadInput(f"expected one of {', '.join(control.idcs)}, got {name!r}")
    limit = control.region.spec.safety.replication_lag_ms_max
    if change.max_lag_ms > limit and change.kind != Kind.FAILOVER:
        raise BadInput(
            f"--max-lag: expected at most {limit}, got {change.max_lag_ms}; it cannot exceed "
            "safety.replication_lag_ms_max of the region file"
        )


def _preview(change: Change, judged: Judged, how: Asking) -> Preview:
    before, after = judged.policy, judged.decision.policy
    region = deployment.find(how.data).region
    seen = forecast = None
    waits = after.operation if after is not None else None
    if after is not None and waits is not None and waits.state is OperationState.AWAITING:
        after = _as_approved(after, waits.id, judged, region)
    if change.kind in MOVES and after is not None:
        forecast = foresee(before, after, region, judged.evidence, change.idc)
    if change.kind == Kind.FAILOVER and (after is not None or how.dry_run):
        out = (change.idc, *(n for n in before.idcs if before.state(n) in _GONE))
        seen = estimate(judged.evidence, change.idc, [n for n in before.idcs if n not in out])
    apart = hashes = None
    if change.kind == Kind.FAILBACK:
        apart = compare(judged.evidence, change.idc, before.idcs)
        answering = [name for name in before.idcs if name in judged.evidence.idcs]
        if how.hashes:
            hashes = asyncio.run(admin.state_hashes(deployment.find(how.data), answering))
    return Preview(forecast, seen, apart, hashes)


def _as_approved(policy: Policy, name: str, judged: Judged, region: Region) -> Policy | None:
    """What the policy becomes if the move is approved at once."""
    approval = Change(Kind.APPROVE, "", "preview", "operator", operation=name)
    now_ms = SystemClock().wall_ms()
    return evaluate(policy, approval, judged.evidence, region, now_ms).policy


def _show_before(change: Change, decision: Decision, preview: Preview, how: Asking) -> None:
    """How things are, and what would come of it; of a refusal all that stands against it."""
    lines = []
    if how.output is Format.TABLE:
        asyncio.run(_show_topology(change, how, 0))
        lines += refusal_lines(decision.blockers)
        if preview.forecast is not None:
            region = deployment.find(how.data).region
            lines += ["plan:", *plan_lines(preview.forecast, region)]
    if preview.loss is not None:
        lines += preview.loss.lines()
    if how.output is Format.TABLE:
        if preview.divergence is not None:
            lines += divergence_lines(divergence_document(preview.divergence))
        lines += hash_lines(preview.hashes) if preview.hashes is not None else []
    for line in lines:
        notes().print(Text(line))


async def _show_topology(change: Change, how: Asking, epoch: int) -> None:
    """Of moves only; once somebody follows the policy of this epoch, or after a moment."""
    if change.kind not in MOVES or how.output is not Format.TABLE:
        return
    looker = Looker(deployment.find(how.data), SystemClock())
    for _ in range(FOLLOW_TRIES):
        document = await looker.look()
        if int(document["policy"].get("epoch", 0)) >= epoch:
            break
        await asyncio.sleep(0.3)
    notes().print(idc_table(document))


def _against(change: Change, preview: Preview) -> str:
    """A return ends with its last step, when clients are still on their way."""
    forecast = preview.forecast
    if forecast is None or change.kind == Kind.FAILBACK:
        return ""
    return f" (predicted: about {forecast.seconds:.1f} s)"


def _show(decision: Decision, preview: Preview | None, how: Asking) -> None:
    """A refusal as a table is the error line itself. Nobody waits: standard output is the
    operation's id alone, for scripts."""
    if how.output is not Format.TABLE:
        document = document_of(decision, how.dry_run)
        if preview is not None and preview.forecast is not None:
            region = deployment.find(how.data).region
            document["plan"] = plan_document(preview.forecast, region)
        if preview is not None and preview.loss is not None:
            document["estimated_loss"] = loss_document(preview.loss)
        if preview is not None and preview.divergence is not None:
            document["divergence"] = divergence_document(preview.divergence)
        if preview is not None and preview.hashes is not None:
            document["state_hashes"] = hashes_document(preview.hashes)
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
