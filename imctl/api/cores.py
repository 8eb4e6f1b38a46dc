"""Spec and status of the kind whose pods are cores that stand by for the one of an IDC's own."""

from __future__ import annotations

from pydantic import Field

from imctl.api.beside import BesideSpec, BesideStatus
from imctl.api.model import ObjectName, Storage


class ImClusterSpec(BesideSpec):
    """Cores of one IDC of this namespace, beside the one in its own pod; one of all serves."""

    idc: ObjectName = Field(
        description="the IDC object, in this namespace, that says `cores: shared`; its region, "
        "certificates, engines' secrets and pull secret are taken"
    )
    replicas: int = Field(
        default=1, ge=0, le=8, description="cores that stand by, beside the IDC's own"
    )
    storage: Storage = Field(
        default=Storage(), description="the volume of each, which outlives its pod"
    )


class ImClusterStatus(BesideStatus):
    """How many there are, and which one serves."""

    ready: int = Field(default=0, description="of them running: they stand by, or one serves")
    serving: str = Field(
        default="", description="the pod that serves; empty: none of these, but the IDC's own"
    )
    idc_generation: int = Field(
        default=0, description="the generation of the IDC object that this is about, too"
    )
