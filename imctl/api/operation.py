"""Spec and status of a TrafficOperation: one move of traffic, asked for once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from imcore.region.model import Model, Name
from imctl.api.model import ObjectName

RuleId = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z][a-z-]*$"),
    Field(json_schema_extra={"maxLength": 63}),
]


Asker = Annotated[
    str,
    StringConstraints(pattern=r"^[^\s,;()]*$"),  # it stands in sentences
    Field(json_schema_extra={"maxLength": 253}),
]
Reason = Annotated[str, StringConstraints(max_length=1024)]


class TrafficOperationSpec(Model):
    """What is asked for. A run does not change: another wish is another object."""

    region: ObjectName = Field(description="the Region in this namespace whose traffic is moved")
    move: Literal["drain", "switchover", "failover", "failback"] = Field(
        description="as the commands of `imctl` of these names"
    )
    idc: Name = Field(description="whose clients are moved, or come back")
    target: Name | None = Field(
        default=None, description="the IDC that takes them; of a switchover"
    )
    certificate: ObjectName = Field(
        description="a Secret with `ca.crt`, `tls.crt`, `tls.key`: the region's CA and an "
        "operator's certificate of it; an admin's, where a rule is overridden"
    )
    expect_epoch: int = Field(
        default=0, ge=0, description="refuse unless the policy is at it; 0: any"
    )
    overrides: list[RuleId] = Field(
        default_factory=list,
        max_length=1,
        description="rule to pass; it is recorded with the operation",
    )
    max_lag_ms: int = Field(
        default=0,
        ge=0,
        description="go on only while replication lags less; at most what the Region says; 0: that",
    )
    rate: int = Field(
        default=0, ge=0, description="sessions a second to hand over; 0: the policy's own"
    )
    asked_by: Asker = Field(
        default="",
        description="who wants it, as that one says; `imctl` names its user and machine. Nobody "
        "checks it",
    )
    reason: Reason = Field(default="", description="why, for people")


class RunPhase(StrEnum):
    WAITING = "Waiting"  # it could not be asked for yet
    ASKING = "Asking"  # it is being asked for, or has been and the answer is not known
    REFUSED = "Refused"
    RUNNING = "Running"
    ENDED = "Ended"


FINAL = frozenset({RunPhase.REFUSED, RunPhase.ENDED})


class RefusalStatus(Model):
    """One rule that stands against it."""

    rule: str = Field(description="its id")
    measured: str = Field(description="what is")
    limit: str = Field(description="what would have to be")
    sentence: str = Field(description="both in a sentence")


class IdcEvidence(Model):
    """What an IDC said of itself when the step was judged."""

    idc: str = Field(description="which")
    serving: bool = Field(description="whether it served")
    sessions: int = Field(description="clients that it had")
    closed: int = Field(description="connections that it had to close")
    lag_ms: int = Field(description="the most that it lagged behind another")
    age_ms: int = Field(description="how old this was")


class StepStatus(Model):
    """A change of the policy that belongs to the operation."""

    at: str = Field(description="when it was committed")
    epoch: int = Field(description="of the policy that it committed")
    name: str = Field(description="what was done from then on")
    sentence: str = Field(description="the decision")
    took_ms: int | None = Field(default=None, description="until the next step, or the end")
    evidence: list[IdcEvidence] = Field(description="what it rests on")
    votes: list[str] = Field(description="against the IDC, of a failover")
    overridden: list[str] = Field(description="rules that stood against it and were passed")


class TrafficOperationStatus(Model):
    """How far it is, as `imctl op show` tells it."""

    phase: RunPhase | None = Field(default=None, description="how far the asking is")
    operation: str = Field(default="", description="its id, as `imctl op list` shows it")
    state: str = Field(default="", description="of the operation, in the words of `imctl op`")
    epoch: int = Field(default=0, description="of the policy that it was asked at")
    outcome: str = Field(default="", description="in a sentence")
    blocked_by: list[str] = Field(
        default_factory=list, description="why it is not asked, or not followed, yet"
    )
    blockers: list[RefusalStatus] = Field(
        default_factory=list, description="all that stands against it, when it is refused"
    )
    started: str = Field(default="", description="when it began")
    ended: str = Field(default="", description="when it ended")
    took_ms: int | None = Field(default=None, description="from its begin to its end")
    steps: list[StepStatus] = Field(default_factory=list, description="the last 50, oldest first")
    observed_generation: int = Field(default=0, description="the generation that this is about")
