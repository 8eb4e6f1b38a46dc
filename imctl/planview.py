"""Plans and rollouts as tables, for 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imctl.output import time_of_day
from imctl.plan.diff import shown
from imctl.plan.document import Plan, alone
from imctl.plan.load import Away, Survivor
from imctl.plan.takes import Change, Takes
from imctl.rollout.record import Rollout

ROWS = 15
VALUE_WIDTH, VALUE_MAX = 18, 80
_COLOURS = {
    Takes.NOTHING: "green", Takes.IN_PLACE: "green", Takes.RESTART: "yellow", Takes.FIXED: "red",
}  # fmt: skip


def changes_view(plan: Plan) -> RenderableType:
    if not plan.running:
        return f"{plan.region}: nothing runs; everything would be started"
    if not plan.changes:
        return f"{plan.region}: no difference"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("FIELD", overflow="fold")
    table.add_column("CURRENT", overflow="fold", max_width=VALUE_WIDTH)
    table.add_column("WANTED", overflow="fold", max_width=VALUE_WIDTH)
    table.add_column("NEEDS", overflow="fold")
    for change in plan.changes:
        difference = change.difference
        cells = (difference.field, *_values(difference.before, difference.after))
        table.add_row(*map(Text, cells), _takes(change))  # brackets are no markup
    return table


def plan_view(plan: Plan) -> RenderableType:
    parts: list[RenderableType] = [changes_view(plan)]
    if plan.fixed:
        parts.append(Text(f"\nrefused by `imctl deploy`: {_fields(plan.fixed)}", style="red"))
    elif plan.order:
        first, *others = plan.order
        order = ", ".join([f"{first} (canary)" if others else first, *others])
        parts.append(f"\norder: {order}; {_turns(plan)}")
    if plan.away:
        parts += ["\nload on the others during each restart (with the limit that headroom sets)"]
        parts += [_load(plan.away)]
    for each in plan.away:
        parts += [Text(f"! {each.idc}: {said!s}", style="red") for said in each.refusals]
    parts += [Text(f"! {idc} does not answer: skipped for now", style="red") for idc in plan.silent]
    parts += [Text(f"! {said}", style="red") for said in plan.warnings]
    return Group(*parts)


def _turns(plan: Plan) -> str:
    """What happens to each unit."""
    stays = [unit for unit in plan.order if unit not in plan.restarted]
    restart = "is drained, restarted, given its clients back and watched"
    if not stays:
        return f"each {restart}"
    kept = not alone(plan.changes, plan.restarted)
    how = "changed in place " + ("with clients connected" if kept else "without a restart")
    if not plan.restarted:
        return f"each is {how}, and is watched"
    verb = "is" if len(stays) == 1 else "are"
    return f"{', '.join(stays)} {verb} {how}; each of the others {restart}"


def _values(before: Any, after: Any) -> tuple[str, str]:
    """Of two lists, what only one of them has. JSON shows all of a long value."""
    if isinstance(before, list) and isinstance(after, list):
        less = [item for item in before if item not in after]
        more = [item for item in after if item not in before]
        if less or more:
            return _short(_words("removed", less)), _short(_words("added", more))
    return _short(shown(before)), _short(shown(after))


def _words(what: str, items: list[Any]) -> str:
    return f"{what} {', '.join(map(shown, items))}" if items else ""


def _short(text: str) -> str:
    return text if len(text) <= VALUE_MAX else text[: VALUE_MAX - 1] + "…"


def _takes(change: Change) -> Text:
    words = str(change.takes)
    if change.takes is Takes.RESTART:
        words = f"restart of {', '.join(change.units)}"
    elif change.takes is Takes.IN_PLACE:
        words = f"change in place at {', '.join(change.units)}"
    elif change.takes is Takes.FIXED:
        words = f"cannot be changed: {change.reason}"
    return Text(words, style=_COLOURS[change.takes])


def _fields(found: Sequence[Change]) -> str:
    return ", ".join(change.difference.field for change in found)


def _load(away: Sequence[Away]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("RESTARTED", "MOVED", "TO"):
        table.add_column(column, no_wrap=True)
    for column in ("SESSIONS", "LIMIT", "MSG/S", "LIMIT"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in away:
        first = (each.idc, str(each.sessions))
        for one in each.survivors or (None,):
            table.add_row(*first, *_carried(one), style="red" if one and not one.fits else "")
            first = ("", "")
    return table


def _carried(one: Survivor | None) -> tuple[str, ...]:
    if one is None:
        return ("none",)
    return (
        one.idc,
        str(one.sessions),
        f"{one.sessions_max:.0f}",
        f"{one.messages_per_s:.0f}",
        f"{one.messages_per_s_max:.0f}",
    )


def rollout_view(rollout: Rollout, driven: bool) -> RenderableType:
    state = str(rollout.state)
    if not rollout.ended and state == "running" and not driven:
        state = "interrupted; `imctl rollout resume` continues it"
    place = f", replacing {rollout.replaces}" if rollout.replaces else ""
    head = f"{rollout.id}{place}: {state}" + (f" ({rollout.why})" if rollout.why else "")
    units = Table("UNIT", "PROGRESS", box=None, pad_edge=False, header_style="bold")
    for unit in rollout.order:
        units.add_row(unit, Text(_where(rollout, unit)))
    steps = Table("TIME", "UNIT", "STEP", box=None, pad_edge=False, header_style="bold")
    for row in rollout.rows[-ROWS:]:
        steps.add_row(time_of_day(row.at_ms), row.unit, Text(row.sentence))
    parts: list[RenderableType] = [Text(head)]
    if rollout.order:
        parts += ["", units]
    if rollout.rows:
        parts += ["", steps]
    return Group(*parts)


def _where(rollout: Rollout, unit: str) -> str:
    if unit in rollout.done:
        return "done"
    if unit in rollout.skipped:
        return f"skipped: {rollout.skipped[unit]}"
    if unit != rollout.current:
        return "waiting"
    rows = [row.sentence for row in rollout.rows if row.unit == unit]
    return rows[-1] if rows else "starting"
