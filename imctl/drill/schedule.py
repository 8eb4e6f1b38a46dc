"""When drills are due: a file of cron lines and blackout windows. No I/O but reading the file."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from cronsim import CronSim, CronSimError
from pydantic import AwareDatetime, Field, ValidationError, field_validator, model_validator

from imcore.errors import BadInput
from imcore.region.model import Model
from imctl.drill import model


class Entry(Model):
    """One drill, again and again."""

    drill: str = Field(description="a name of `drill list`, or a file")
    cron: str = Field(description="minute hour day month weekday")
    timezone: str = Field(default="UTC", description="whose hours these are; an IANA name")
    var: dict[str, str] = Field(default_factory=dict, description="variables of the drill")

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        try:
            CronSim(value, datetime.now(UTC))
        except CronSimError as error:
            raise ValueError(
                f'expected a cron line as "0 10 * * TUE", got {value!r} ({error})'
            ) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _is_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"expected a time zone as Europe/Berlin, got {value!r}") from None
        return value


class Blackout(Model):
    """No drill begins in it; those of the operator that run when it begins end."""

    start: AwareDatetime
    end: AwareDatetime
    reason: str

    @model_validator(mode="after")
    def _in_order(self) -> Blackout:
        if self.end <= self.start:
            raise ValueError(f"expected an end after its start {self.start.isoformat()}")
        return self


class Schedule(Model):
    drills: list[Entry] = Field(min_length=1)
    blackouts: list[Blackout] = Field(default_factory=list)


class Due(NamedTuple):
    """``blackout``: why it is left out."""

    at: datetime
    entry: Entry
    blackout: Blackout | None


def load_schedule(path: Path) -> Schedule:
    """Raises BadInput with every mistake that is found, a line each; a drill that does not exist,
    or lacks a variable, is one."""
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadInput(f"{path}: cannot be read: {why}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{path}:{line}: {error.problem or 'not YAML'}") from error
    try:
        found = Schedule.model_validate(document)
    except ValidationError as error:
        said = [
            f"{path}: {'.'.join(map(str, one['loc'])) or 'the file'}: "
            f"{one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()
        ]
        raise BadInput("\n".join(said)) from error
    problems = []
    for number, entry in enumerate(found.drills):
        try:
            model.with_values(model.load_drill(model.find(entry.drill)), entry.var)
        except BadInput as wrong:
            problems.append(f"{path}: drills.{number}: {wrong}")
    if problems:
        raise BadInput("\n".join(problems))
    return found


def dues(schedule: Schedule, after: datetime) -> Iterator[Due]:
    """From then on (aware), in the order of their times; without end, but for cron lines that name
    a day which never comes."""
    for at, number in heapq.merge(
        *(_times(entry, number, after) for number, entry in enumerate(schedule.drills))
    ):
        hidden = [one for one in schedule.blackouts if one.start <= at < one.end]
        yield Due(at, schedule.drills[number], hidden[0] if hidden else None)


def _times(entry: Entry, number: int, after: datetime) -> Iterator[tuple[datetime, int]]:
    for at in CronSim(entry.cron, after.astimezone(ZoneInfo(entry.timezone))):
        yield at.astimezone(UTC), number
