"""What the kinds have in common whose pods stand beside the one of an IDC's own."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from imcore.region.model import Model
from imctl.api.model import Condition, ImageName, ObjectName, Resources, Toleration


class BesideSpec(Model):
    """Whose they are, and what each of them is made with."""

    idc: ObjectName = Field(
        description="the IDC object, in this namespace; its region, certificates and pull secret "
        "are taken"
    )
    image: ImageName | None = Field(default=None, description="default: the IDC object's")
    resources: Resources = Field(
        default=Resources(), description="what each pod asks for; default: by the capacity model"
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="labels of the nodes that may run them"
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=16, description="taints of nodes that may run them"
    )
    priority_class: ObjectName | None = Field(
        default=None,
        description="the PriorityClass of each pod, who goes first where room is short",
    )
    paused: bool = Field(default=False, description="true: the operator leaves it as it is")


class BesidePhase(StrEnum):
    BLOCKED = "Blocked"  # something that it needs is not there, or is wrong
    PAUSED = "Paused"
    STARTING = "Starting"
    SERVING = "Serving"  # as many as are wanted, with the settings that are wanted
    ROLLING = "Rolling"  # new settings are on their way to the pods
    UNREADY = "Unready"  # some that were ready are not now
    DOWN = "Down"  # a drill has killed their IDC and keeps it down
    DELETING = "Deleting"


class BesideStatus(Model):
    """How many there are, and how far new settings have come."""

    phase: BesidePhase | None = Field(default=None, description="where it is on its way")
    replicas: int = Field(default=0, description="pods that there are")
    ready: int = Field(default=0, description="of them in discovery and serving")
    updated: int = Field(default=0, description="of them with the settings that are wanted")
    selector: str = Field(default="", description="of its pods, for who scales them")
    blocked_by: list[str] = Field(
        default_factory=list, description="what it waits for, or what stands against it"
    )
    observed_generation: int = Field(default=0, description="the generation that this is about")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready: as many are ready as are wanted; Rolled: with the wanted settings",
    )
