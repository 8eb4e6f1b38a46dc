"""Spec and status of the kind whose pods are the gateways of an IDC, each with its sessions."""

from __future__ import annotations

from pydantic import Field

from imcore.region.model import Model
from imctl.api.beside import BesideSpec, BesideStatus
from imctl.api.model import ObjectName


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
        description="percent of the clients that the IDC had before the first pod was replaced "
        "that must be there before the next one is, and after the last one; asked of an IDC with "
        "`role_certificate`",
    )
    max_unavailable: int = Field(
        default=1,
        ge=1,
        le=64,
        description="who drains nodes may take away so many at once (PodDisruptionBudget)",
    )


class GatewayClusterSpec(BesideSpec):
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
    rollout: Rollout = Field(default=Rollout(), description="how new settings come to the pods")


class RolloutStatus(Model):
    """How far new settings are on their way."""

    step: int = Field(description="gateways that were told to take them; 0: none was yet")
    of: int = Field(description="gateways that are to have them in the end")
    waiting_for: str = Field(default="", description="before the next step, or the end")


class GatewayClusterStatus(BesideStatus):
    """How many there are, and how far new settings have come."""

    connections: int | None = Field(
        default=None, description="clients of the IDC, as its object says; with `role_certificate`"
    )
    step_clients: int | None = Field(
        default=None, description="of them before the rollout that is under way"
    )
    rollout: RolloutStatus | None = Field(
        default=None, description="of new settings; unset: none are on their way"
    )
