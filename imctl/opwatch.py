"""Following an operation on the screen: a tick line for each step, and what its end means."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime

import typer

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from imctl.errors import Aborted, Failed
from imctl.output import time_of_day
from imctl.traffic import Control, Left
from services.control.operations import UNDER_WAY, Operation
from services.control.rules import Change
from services.control.slow import Slow
from services.policy.document import OperationState

TICK_S = 0.5
UNKNOWN_S = 10.0  # whoever ends an operation may still be writing its record


async def until_ended(control: Control, name: str, timeout_s: float, shown: int = 0) -> Operation:
    """Prints a line on standard error for each step from number ``shown`` on, and whenever the
    number of sessions or the state changed. A registry that is busy is asked again. Raises
    OutcomeUnknown when it has not ended in time, or its step failed and it waits for somebody."""
    said = ""
    known: list[Operation] | None = None  # what a step's time is compared with
    doubted = 0.0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                operation = await _look(control, name)
                if operation is not None:
                    known = await _known(control) if known is None else known
                    slow = control.slow(operation, known or ())
                    for line in step_lines(operation, shown, slow):
                        typer.echo(line, err=True)
                    shown = len(operation.steps)
                    doubted = doubted + TICK_S if is_doubtful(operation) else 0.0
                    if operation.state not in UNDER_WAY and (
                        not is_doubtful(operation) or doubted > UNKNOWN_S
                    ):
                        return operation
                    if operation.state is OperationState.STALLED:
                        break
                    tick = tick_line(operation, await control.left(operation.idc), slow)
                    if tick != said:
                        typer.echo(f"  {datetime.now():%H:%M:%S} {tick}", err=True)
                        said = tick
                await asyncio.sleep(TICK_S)
    except TimeoutError:
        raise OutcomeUnknown(
            f"{name} is still in progress after {timeout_s:g} s; see `imctl op show {name}`"
        ) from None
    raise OutcomeUnknown(
        f"{name} is paused because a step failed: {operation.steps[-1].sentence}; "
        f"`imctl op resume {name}` continues it, `imctl op abort {name}` ends it"
    )


async def until_followed(
    control: Control, epoch: int, change: Change, timeout_s: float
) -> list[str]:
    """Until every IDC that answers, but the one that the change is about, serves by this epoch or a
    later one; who they are. Raises OutcomeUnknown."""
    late: list[str] = []
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                found = await control.statuses(TICK_S)
                epochs = {
                    name: int((one.get("policy") or {}).get("epoch") or 0)
                    for name, one in found.items()
                    if not isinstance(one, ImError) and name != change.idc
                }
                late = [name for name, known in epochs.items() if known < epoch]
                if epochs and not late:
                    return list(epochs)
                await asyncio.sleep(TICK_S)
    except TimeoutError:
        who = f"{', '.join(late)} did not follow it" if late else "no other IDC answered"
        raise OutcomeUnknown(
            f"committed as epoch {epoch}, but {who} within {timeout_s:g} s; see `imctl status`"
        ) from None


async def _known(control: Control) -> list[Operation] | None:
    try:
        return await control.operations()
    except Unavailable:
        return None


async def _look(control: Control, name: str) -> Operation | None:
    try:
        return await control.operation(name)
    except Unavailable:
        return None


def is_doubtful(operation: Operation) -> bool:
    return operation.state is OperationState.UNKNOWN


def conclude(operation: Operation) -> str:
    """The last line of an operation that is done. Raises Aborted, OutcomeUnknown or Failed for
    every other end: nothing that is partial may look like success to a script."""
    name, why = operation.id, f"`imctl op show {operation.id}`"
    if operation.state is OperationState.DONE:
        if not operation.ended_ms:
            return f"{name} is done"  # as the policy says; nobody recorded when
        return f"{name} is done after {_seconds(operation.started_ms, operation.ended_ms)}"
    if operation.state is OperationState.ABORTED:
        raise Aborted(f"{name} was aborted; {why} shows by whom")
    if operation.state is OperationState.EXCEPTIONS:
        raise Failed(
            f"{name} is done with exceptions: {closed_in(operation)} clients did not move when "
            f"asked and were disconnected; see {why}"
        )
    if operation.state is OperationState.FAILED:
        raise Failed(f"{name} was ended early; {why} shows by what")
    raise OutcomeUnknown(f"the outcome of {name} was not recorded; see {why}")


def closed_in(operation: Operation) -> int:
    """Connections that its IDC had closed by the last step."""
    seen = operation.steps[-1].evidence.get("idcs", {}) if operation.steps else {}
    return int(seen.get(operation.idc, {}).get("closed", 0))


def step_lines(operation: Operation, after: int = 0, slow: Sequence[Slow] = ()) -> list[str]:
    """A line for each step from number ``after`` on: when, what, how long after the last, and
    whether that was longer than usual."""
    lines = []
    ended = {each.took.step + 1: f"; {each.sentence()}" for each in slow if each.took.over}
    for number, step in enumerate(operation.steps[after:], start=after):
        began = operation.steps[number - 1].at_ms if number else operation.started_ms
        took, late = _seconds(began, step.at_ms), ended.get(number, "")
        lines.append(f"{_mark()} {time_of_day(step.at_ms)} {step.sentence} ({took}{late})")
    return lines


def tick_line(operation: Operation, left: Left, slow: Sequence[Slow]) -> str:
    """What is said between two steps, whenever it is no longer the same. A slow step is said by
    name and limit only: its time passes anyhow."""
    count = "no answer" if left.sessions is None else f"{left.sessions} sessions"
    parts = [f"{operation.idc}: {count}"]
    if operation.state is not OperationState.RUNNING:
        parts.append(str(operation.state))
    if left.stuck:
        parts.append(stuck_words(left.stuck))
    parts += [
        f"slow: {each.took.name} has been running for more than {each.usual.limit_ms / 1000:.1f} s"
        for each in slow
        if not each.took.over
    ]
    return ", ".join(parts)


def stuck_words(stuck: Mapping[str, int]) -> str:
    """``3 stuck (fra-gw1.1: 2, fra-gw2.1: 1)``"""
    by_gateway = ", ".join(f"{name}: {count}" for name, count in sorted(stuck.items()))
    return f"{sum(stuck.values())} stuck ({by_gateway})"


def _mark() -> str:
    """A tick where the terminal can show one."""
    encoding = (getattr(sys.stderr, "encoding", None) or "ascii").lower()
    return "✓" if encoding.replace("-", "") == "utf8" else "*"


def _seconds(began_ms: int, ended_ms: int) -> str:
    return f"{max(0, ended_ms - began_ms) / 1000:.1f} s"
