"""What the model answers: values with units, formulas and what they rest on."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from imctl.capacity.inputs import Workload


class Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Line(Result):
    name: str
    label: str
    value: float
    unit: str  # "" for a count
    formula: str
    assumed: list[str] = Field(description="figures behind it that nobody measured")

    @classmethod
    def of(
        cls,
        name: str,
        label: str,
        value: float,
        unit: str,
        formula: str,
        assumed: list[str] | None = None,
    ) -> Self:
        return cls(
            name=name,
            label=label,
            value=value,
            unit=unit,
            formula=formula,
            assumed=assumed or [],
        )


class Engine(Result):
    name: str
    per_idc: int
    all: int
    cores: float = Field(description="of one")
    memory_gib: float = Field(description="of one")
    bound_by: str = Field(description="what asks for that many")
    formula: str
    assumed: list[str]


class Role(Engine):
    use_at_peak: float = Field(description="share of what it has, all IDCs up")
    use_after_loss: float = Field(description="share of what a survivor has")


class Driver(Result):
    name: str
    value: float
    unit: str
    share: float


class Totals(Result):
    """All IDCs."""

    cores: float
    memory_gib: float
    disk_bytes: float
    wan_bit_s: float = Field(description="all links, both ways, as they must be")
    client_bit_s: float = Field(description="to clients, after a loss")


class Doubled(Result):
    """How many times as much, when one thing is doubled."""

    what: str
    cores: float
    memory: float
    disk: float
    wan: float
    clients: float


class Used(Result):
    """A figure that the model rests on."""

    name: str
    value: float
    unit: str
    meaning: str
    source: str
    assumed: bool


class Sizing(Result):
    inputs: Workload
    load: list[Line]
    roles: list[Role]
    partitions: Line
    engines: list[Engine]
    network: list[Line]
    storage: list[Line]
    budget: list[Line]
    cores_by: list[Driver] = Field(description="cost drivers, the greatest first")
    disk_by: list[Driver]
    totals: Totals
    sensitivity: list[Doubled] = Field(default=[], description="with one input doubled")
    assumptions: list[Doubled] = Field(
        default=[], description="with one assumed figure wrong by a factor of two"
    )
    notes: list[str]
    figures: list[Used]
