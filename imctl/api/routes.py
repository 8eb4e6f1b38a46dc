"""Spec and status of the kind whose pods stand between the core of an IDC and its gateways."""

from __future__ import annotations

from pydantic import Field

from imcore.region.model import Model
from imctl.api.beside import BesideSpec, BesideStatus
from imctl.api.model import ObjectName


class RouteAutoscaling(Model):
    """`replicas` follows the CPU, which is all that they spend: a HorizontalPodAutoscaler."""

    min: int = Field(ge=1, le=16, description="instances at least")
    max: int = Field(ge=1, le=16, description="instances at most")
    cpu: int = Field(
        default=60,
        ge=1,
        le=500,
        description="percent of the CPU that a pod asks for, which it is to use on average",
    )


class RouteRollout(Model):
    """How new settings come to the pods: a new one first, then an old one goes; its gateways link
    to another."""

    min_ready_s: int = Field(
        default=5, ge=0, le=3600, description="a new one has to be ready for so long"
    )
    max_surge: int = Field(default=1, ge=1, le=16, description="so many new ones at once")
    max_unavailable: int = Field(
        default=1,
        ge=1,
        le=16,
        description="who drains nodes may take away so many at once (PodDisruptionBudget)",
    )


class RouteClusterSpec(BesideSpec):
    """The route instances of one IDC of this namespace."""

    idc: ObjectName = Field(
        description="the IDC object, in this namespace, that says `gateways: apart`; its region, "
        "certificates and pull secret are taken"
    )
    replicas: int = Field(
        default=2,
        ge=0,
        le=16,
        description="instances; 0: gateways link to the core. With `autoscaling` it is the "
        "autoscaler's",
    )
    autoscaling: RouteAutoscaling | None = Field(
        default=None, description="unset: `replicas` is for people to set"
    )
    rollout: RouteRollout = Field(
        default=RouteRollout(), description="how new settings come to the pods"
    )


class RouteClusterStatus(BesideStatus):
    """How many there are, and how far new settings have come."""
