"""When a Drill's runs begin, and which of them go. Pure but for reading the ready-made drills."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import ValidationError

from imctl.api.drills import (
    DRILL_FINAL,
    DrillSpec,
    DrillStatus,
    SchedulePhase,
)
from imctl.api.kinds import API_VERSION, DRILL_RUN, GROUP
from imctl.drill.keeper import LATE_S
from imctl.drill.schedule import Due, Schedule, dues
from imctl.reconcile.drillrun import stop_of, text_of
from imctl.reconcile.observed import Object, Owner

LABEL = f"{GROUP}/drill"  # of its runs

Status = DrillStatus


def problems_of(spec: DrillSpec, name: str) -> list[str]:
    """In the words of `imctl drill validate` and `imctl drill schedule`."""
    try:
        schedule_of(spec, name)
        wrong = []
    except ValidationError as error:
        wrong = [
            f"spec.{_place(one['loc'])}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        ]
    return wrong + text_of(spec.run, name)[1]


def _place(loc: tuple[int | str, ...]) -> str:
    """In the spec; a schedule file has a list of drills instead."""
    return ".".join(str(each) for each in (loc[2:] if loc[0] == "drills" else loc))


def schedule_of(spec: DrillSpec, name: str) -> Schedule:
    """Raises ValidationError."""
    entry = {"drill": spec.run.drill or name, "cron": spec.cron, "timezone": spec.timezone}
    blackouts = [each.model_dump() for each in spec.blackouts]
    return Schedule.model_validate({"drills": [entry], "blackouts": blackouts})


class Turn(NamedTuple):
    """``due``: the last that is due now, begun or left out; ``following``: the next one."""

    due: Due | None
    following: Due | None


def turn(schedule: Schedule, since: datetime, now: datetime) -> Turn:
    """Of those after ``since``; one that could not begin in time waits for its next."""
    last = None
    for each in dues(schedule, max(since, now - timedelta(seconds=LATE_S))):
        if each.at > now:
            return Turn(last, each)
        last = each
    return Turn(last, None)  # a cron line may name a day that never comes


def run_of(owner: Owner, spec: DrillSpec, at: datetime) -> Object:
    """The same name whoever makes it, and how often: it is made once."""
    mine = {"apiVersion": API_VERSION, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
    run = spec.run.model_dump(mode="json", exclude_defaults=True)
    return {
        "apiVersion": API_VERSION,
        "kind": DRILL_RUN.name,
        "metadata": {
            "name": f"{owner.name}-{at:%Y%m%d%H%M}",
            "namespace": owner.namespace,
            "labels": {LABEL: owner.name},
            "ownerReferences": [mine],
        },
        "spec": {"begin_within_s": int(LATE_S), **run},
    }


def blackout_at(schedule: Schedule, now: datetime) -> str:
    """Why nothing may run now; empty: it may."""
    for each in schedule.blackouts:
        if each.start <= now < each.end:
            return f"a blackout: {each.reason}, until {rfc3339(each.end)}"
    return ""


def next_blackout(schedule: Schedule, now: datetime) -> datetime | None:
    """When the next one begins."""
    return min((each.start for each in schedule.blackouts if each.start > now), default=None)


def to_stop(runs: Iterable[Object]) -> list[Object]:
    """Those that are not over, and were not told yet."""
    return [
        each
        for each in runs
        if each.get("status", {}).get("phase") not in DRILL_FINAL and not stop_of(each)
    ]


def over(runs: Iterable[Object]) -> list[Object]:
    """Those that are over, newest first."""
    final = [each for each in runs if each.get("status", {}).get("phase") in DRILL_FINAL]
    return sorted(final, key=lambda each: str(each["metadata"]["name"]), reverse=True)


def said(
    before: Status,
    generation: int,
    spec: DrillSpec,
    problems: Sequence[str],
    found: Turn,
    runs: Sequence[Object],
) -> Status:
    """``runs``: that are over, newest first."""
    phase = SchedulePhase.PAUSED if spec.paused else SchedulePhase.SCHEDULED
    update: dict[str, object] = {
        "phase": SchedulePhase.INVALID if problems else phase,
        "problems": list(problems),
        "next": "",
        "observed_generation": generation,
    }
    if phase is SchedulePhase.SCHEDULED and found.following is not None:
        update["next"] = rfc3339(found.following.at)
    if found.due is not None:
        update["last_due"] = rfc3339(found.due.at)
        if found.due.blackout is not None:
            why = found.due.blackout
            update["left_out"] = f"{rfc3339(found.due.at)}: {why.reason}, until {why.end}"
    if runs:
        update["last_run"] = runs[0]["metadata"]["name"]
        update["last_verdict"] = runs[0]["status"].get("verdict", "")
    return before.model_copy(update=update)


def rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
