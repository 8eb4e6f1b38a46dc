"""Specs and statuses of a DrillRun, one run of a drill on a Region, judged; and of a Drill, which
makes them again and again."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from imcore.region.model import Model, Name
from imctl.api.model import ObjectName

DrillName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$"),
    Field(json_schema_extra={"maxLength": 63}),
]
Variable = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]
# A ready-made drill has 5 KB.
Experiment = Annotated[str, StringConstraints(min_length=1, max_length=65_536)]
Value = Annotated[str, StringConstraints(max_length=253)]


class DrillRunSpec(Model):
    """What is broken, and where. A run does not change: another run is another object."""

    region: ObjectName = Field(description="the Region in this namespace that is drilled")
    drill: DrillName | None = Field(
        default=None, description="one of the ready-made, as `imctl drill list` shows them"
    )
    experiment: Experiment | None = Field(
        default=None,
        description="or one of your own: the text of a drill file, with our actions, probes and "
        "control and no others",
    )
    var: dict[Variable, Value] = Field(
        default_factory=dict, description="variables of the drill, such as the victim"
    )
    certificate: ObjectName = Field(
        description="a Secret with `ca.crt`, `tls.crt`, `tls.key`: the region's CA and an admin's "
        "certificate of it; an operator's, where the drill only moves traffic"
    )
    region_keys: ObjectName = Field(
        description="a Secret with `region-keys.json`, by which the clients of its load are known"
    )
    namespaces: dict[Name, ObjectName] = Field(
        default_factory=dict,
        description="of the parts of the region (IDCs, witness) that are not in this one, by name",
    )
    begin_within_s: int = Field(
        default=0,
        ge=0,
        description="refused when it could not begin for so long since it was made; 0: it waits",
    )


class DrillPhase(StrEnum):
    WAITING = "Waiting"  # it could not begin yet
    RUNNING = "Running"
    UNDOING = "Undoing"  # whoever ran it is gone: what it has left is undone
    REFUSED = "Refused"
    ENDED = "Ended"


DRILL_FINAL = frozenset({DrillPhase.REFUSED, DrillPhase.ENDED})


class DrillRunStatus(Model):
    """How far it is, and what it has shown."""

    phase: DrillPhase | None = Field(default=None, description="how far it is")
    runner: str = Field(default="", description="the operator's process that runs it")
    verdict: str = Field(
        default="", description="pass, deviated, inconclusive, aborted; of a refused one: refused"
    )
    reason: str = Field(default="", description="of the verdict, in a sentence")
    rto_s: float | None = Field(
        default=None,
        description="seconds from the fault until 99 % of the devices there were answered again",
    )
    moved_s: float | None = Field(
        default=None, description="seconds that the slowest planned move took"
    )
    lost: int | None = Field(
        default=None, description="acked canary messages that nobody has any more (RPO)"
    )
    delayed: int | None = Field(
        default=None,
        description="acked canary messages that no survivor could serve right after the fault, and "
        "that were there in the end",
    )
    report: str = Field(
        default="",
        description="a ConfigMap in this namespace with `report.md`, `report.json` and, if it "
        "fits, `report.html`; it goes with this object",
    )
    blocked_by: list[str] = Field(
        default_factory=list, description="why it has not begun, or is not undone, yet"
    )
    blockers: list[str] = Field(
        default_factory=list, description="all that stands against it, when it is refused"
    )
    left: list[str] = Field(
        default_factory=list, description="what of its faults could not be undone"
    )
    started: str = Field(default="", description="when it began")
    ended: str = Field(default="", description="when all of it was undone and judged")
    observed_generation: int = Field(default=0, description="the generation that this is about")


Moment = Annotated[
    str, StringConstraints(max_length=40), Field(json_schema_extra={"maxLength": 40})
]


class Blackout(Model):
    """No run begins in it."""

    start: Moment = Field(description="RFC 3339; from here")
    end: Moment = Field(description="RFC 3339; up to here")
    reason: Annotated[str, StringConstraints(max_length=253)] = Field(
        description="said where a run is left out"
    )


class DrillSpec(Model):
    """When which drill is run."""

    cron: Annotated[str, StringConstraints(max_length=253)] = Field(
        description='minute hour day month weekday, as "0 10 * * TUE"'
    )
    timezone: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="UTC", description="whose hours these are; an IANA name"
    )
    blackouts: list[Blackout] = Field(
        default_factory=list, max_length=64, description="when no run begins"
    )
    paused: bool = Field(default=False, description="true: no run is made")
    keep: int = Field(
        default=10, ge=1, le=100, description="so many of its runs that are over; older ones go"
    )
    run: DrillRunSpec = Field(description="what each run is")


class SchedulePhase(StrEnum):
    SCHEDULED = "Scheduled"
    PAUSED = "Paused"
    INVALID = "Invalid"


class DrillStatus(Model):
    """When it comes, and what the last runs have shown."""

    phase: SchedulePhase | None = Field(default=None, description="whether runs are made")
    problems: list[str] = Field(
        default_factory=list, description="in the words of `imctl drill validate`"
    )
    next: str = Field(default="", description="when the next run begins")
    last_due: str = Field(default="", description="the last time that was decided about")
    left_out: str = Field(default="", description="why the last that was left out was so")
    last_run: str = Field(default="", description="the last DrillRun that is over")
    last_verdict: str = Field(default="", description="of it")
    observed_generation: int = Field(default=0, description="the generation that this is about")
