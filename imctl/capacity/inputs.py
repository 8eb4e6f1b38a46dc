"""The workload and what must be survived: the inputs of the capacity model, with their units."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from imctl.capacity.quantity import number

SHARES_MAY_MISS = 0.001


def _number(value: object) -> float:
    try:
        return number(value)
    except ValueError as error:
        raise PydanticCustomError("number", "{expected}", {"expected": str(error)}) from None


Number = Annotated[float, BeforeValidator(_number)]
Whole = Annotated[int, BeforeValidator(_number)]


class Group(BaseModel):
    """A share of the messages goes to conversations with this number of members."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: Whole = Field(ge=2, le=1_000_000)
    share: Number = Field(ge=0, le=1)


class Workload(BaseModel):
    """All inputs have a default: a million users of a chat in three IDCs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    daily_users: Number = Field(default=1e6, ge=1, le=1e11, description="daily active users")
    online_share: Number = Field(
        default=0.3, gt=0, le=1, description="share of them online at peak"
    )
    devices: Number = Field(
        default=1.3, ge=1, le=20, description="connected devices per online user"
    )
    messages_per_user: Number = Field(
        default=100.0, gt=0, le=1e6, description="messages sent per user per day"
    )
    peak_factor: Number = Field(
        default=2.0, ge=1, le=1000, description="peak messages/s divided by the daily mean"
    )
    peak_messages_s: Number | None = Field(
        default=None, gt=0, le=1e12, description="peak messages/s, instead of the factor"
    )
    groups: tuple[Group, ...] = Field(
        default=(
            Group(members=2, share=0.75),
            Group(members=10, share=0.18),
            Group(members=100, share=0.06),
            Group(members=500, share=0.01),
        ),
        min_length=1,
        description="conversation sizes, and the share of messages sent to each",
    )
    message_bytes: Number = Field(
        default=300.0, gt=0, le=98_304, description="mean size of a message's content, in bytes"
    )
    heartbeat_s: Number = Field(
        default=5.0, ge=0.2, le=3600, description="seconds between heartbeats of a connection"
    )
    connects_per_day: Number = Field(
        default=10.0, ge=0, le=10_000, description="connects per device per day"
    )
    idcs: Whole = Field(
        default=3, ge=2, le=50, description="number of IDCs that take clients, of equal size"
    )
    survivors: Whole | None = Field(
        default=None,
        ge=1,
        le=50,
        description="number of IDCs that must be able to carry everything [default: all but one]",
    )
    headroom: Number = Field(
        default=0.8,
        gt=0,
        le=1,
        description="load limit of a surviving IDC, as a share of its capacity",
    )
    replication_factor: Whole = Field(
        default=3, ge=1, le=9, description="copies of log and KV within an IDC"
    )
    retention_days: Number = Field(
        default=30.0, ge=0, le=36_500, description="message retention, in days"
    )
    log_hours: Number = Field(
        default=24.0, ge=0.1, le=8_760, description="hours of op log kept for an absent IDC"
    )
    availability: Number = Field(
        default=0.99999, gt=0, lt=1, description="share of requests that must succeed"
    )
    rto_s: Number = Field(
        default=8.0, gt=0, le=86_400, description="seconds until the clients of a lost IDC are back"
    )

    @model_validator(mode="after")
    def _fit(self) -> Workload:
        total = sum(group.share for group in self.groups)
        if abs(total - 1) > SHARES_MAY_MISS:
            raise PydanticCustomError(
                "groups", "{expected}, got {total}",
                {"expected": "shares that add up to 1", "total": f"{total:g}"},
            )  # fmt: skip
        if self.survivors is not None and self.survivors > self.idcs:
            raise PydanticCustomError(
                "survivors", "{expected}, got {total}",
                {"expected": f"at most the {self.idcs} IDCs", "total": f"{self.survivors}"},
            )  # fmt: skip
        return self

    @property
    def surviving(self) -> int:
        return self.idcs - 1 if self.survivors is None else self.survivors

    @property
    def messages_a_day(self) -> float:
        return self.daily_users * self.messages_per_user

    @property
    def peak(self) -> float:
        """Messages accepted a second at the peak, in all IDCs together."""
        if self.peak_messages_s is not None:
            return self.peak_messages_s
        return self.messages_a_day / 86_400 * self.peak_factor

    @property
    def connections(self) -> float:
        """At the peak, in all IDCs together."""
        return self.daily_users * self.online_share * self.devices

    @property
    def members(self) -> float:
        """Members of a message's conversation, mean over the messages."""
        return sum(group.members * group.share for group in self.groups)

    @property
    def pushes(self) -> float:
        """Devices that a message is pushed to: all of its sender's, who is online, and those of
        the other members who are."""
        return self.devices * (1 + (self.members - 1) * self.online_share)
