"""Spec and status of the kind whose pods are the gateways of an IDC, each with its sessions."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from imcore.region.model import Model
from imctl.api.model import Condition, ImageName, ObjectName, Resources, Toleration


class Autoscaling(Model):
    """`replicas` follows the connections: a HorizontalPodAutoscaler on the pods' metric
    `im_gateway_connections`, which the cluster's metrics API has to have."""

    min: int = Field(ge=1, le=64, description="gateways at least")
    max: int = Field(ge=1, le=64, description="gateways at most")
    connections: int = Field(
        ge=1, description="client connections that a gateway is to have, on average"
    )


class Rollout(Model):
    """How new settings come to the pods: one after the other, the last one first, each after its
    clients are at other gateways, and the next one when they are back."""

    keep: int = Field(
        default=0,
        ge=0,
        le=64,
        description="so many, the first ones, keep their former settings: a rollout in steps",
    )
    min_ready_s: int = Field(
        default=5,
        ge=0,
        le=3600,
        description="all have to be ready for so long before the next one is replaced",
    )
    reconnected: int = Field(
        default=90,
        ge=0,
        le=100,
        description="percent of the clients that the IDC had before a pod was replaced that must "
        "be there before the next one is; asked of an IDC with `role_certificate`",
    )
    max_unavailable: int = Field(
        default=1,
        ge=1,
        le=64,
        description="who drains nodes may take away so many at once (PodDisruptionBudget)",
    )


class GatewayClusterSpec(Model):
    """The gateways of one IDC of this namespace, in pods of their own."""

    idc: ObjectName = Field(
        description="the IDC object, in this namespace, that says `gateways: apart`; its region, "
        "certificates, type of Services and pull secret are taken"
    )
    replicas: int = Field(
        default=2,
        ge=0,
        le=64,
        description="gateways, at most the IDC's `gateways` in the Region; with `autoscaling` it "
        "is the autoscaler's",
    )
    autoscaling: Autoscaling | None = Field(
        default=None, description="unset: `replicas` is for people to set"
    )
    image: ImageName | None = Field(default=None, description="default: the IDC object's")
    resources: Resources = Field(
        default=Resources(), description="what each pod asks for; default: by the capacity model"
    )
    rollout: Rollout = Field(default=Rollout(), description="how new settings come to the pods")
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


class GatewayPhase(StrEnum):
    BLOCKED = "Blocked"  # something that it needs is not there, or is wrong
    PAUSED = "Paused"
    STARTING = "Starting"
    SERVING = "Serving"  # as many as are wanted, with the settings that are wanted
    ROLLING = "Rolling"  # new settings are on their way to the pods
    UNREADY = "Unready"  # some that were ready are not now
    DOWN = "Down"  # a drill has killed their IDC and keeps it down
    DELETING = "Deleting"


class GatewayClusterStatus(Model):
    """How many there are, and how far new settings have come."""

    phase: GatewayPhase | None = Field(default=None, description="where it is on its way")
    replicas: int = Field(default=0, description="pods that there are")
    ready: int = Field(default=0, description="of them in discovery and serving")
    updated: int = Field(default=0, description="of them with the settings that are wanted")
    selector: str = Field(default="", description="of its pods, for who scales them")
    connections: int | None = Field(
        default=None, description="clients of the IDC, as its object says; with `role_certificate`"
    )
    step_clients: int | None = Field(
        default=None, description="of them when the pod that is replaced now was told to end"
    )
    blocked_by: list[str] = Field(
        default_factory=list, description="what it waits for, or what stands against it"
    )
    observed_generation: int = Field(default=0, description="the generation that this is about")
    conditions: list[Condition] = Field(
        default_factory=list,
        description="Ready: as many are ready as are wanted; Rolled: with the wanted settings",
    )
