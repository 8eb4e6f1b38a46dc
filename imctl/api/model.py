"""Specs and statuses of the kinds that only Kubernetes has; a Region's spec is the region file's.

Fields are named as in the region file.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from imcore.region.model import Model, Name

ObjectName = Annotated[
    str,
    StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"),
    Field(json_schema_extra={"maxLength": 253}),
]
Quantity = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"),
    Field(json_schema_extra={"maxLength": 20}),
]
LabelKey = Annotated[
    str,
    StringConstraints(
        pattern=r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
    ),
    Field(json_schema_extra={"maxLength": 317}),
]
ImageName = Annotated[
    str,
    StringConstraints(pattern=r"^[^\s]+$"),
    Field(json_schema_extra={"maxLength": 500}),
]


class Issuer(Model):
    """An issuer of cert-manager."""

    name: ObjectName = Field(description="of the issuer")
    kind: Literal["Issuer", "ClusterIssuer"] = Field(
        default="Issuer", description="of the namespace, or of the whole cluster"
    )


class Certificates(Model):
    """What the process shows others and by which it knows them: a Secret that exists, or an issuer
    of cert-manager. All IDCs of a region and the witness trust one CA."""

    secret: ObjectName | None = Field(
        default=None, description="a Secret with `ca.crt`, `tls.crt`, `tls.key`"
    )
    issuer: Issuer | None = Field(
        default=None, description="cert-manager makes the Secret and renews it"
    )
    region_keys: ObjectName = Field(
        description="a Secret with `region-keys.json`, the same in every IDC of the region"
    )


class Storage(Model):
    """The volume for logs, KV and sessions; it outlives the pod and, once made, stays as it is."""

    size: Quantity = Field(default="20Gi", description="of the volume")
    class_name: ObjectName | None = Field(
        default=None, description="storage class; default: the cluster's own"
    )


class Resources(Model):
    """What the pod asks for; default: what the capacity model reckons for the IDC's `capacity`."""

    cpu: Quantity | None = Field(default=None, description="cores, as request")
    cpu_limit: Quantity | None = Field(
        default=None, description="cores, as limit; default: none, and what the node has left"
    )
    memory: Quantity | None = Field(default=None, description="as request and as limit")


class Toleration(Model):
    """A taint of nodes on which the pod may run all the same."""

    key: LabelKey | None = Field(default=None, description="of the taint; unset: of every one")
    operator: Literal["Equal", "Exists"] = Field(
        default="Equal", description="Equal: its value is this one; Exists: whatever it is"
    )
    value: str = Field(default="", max_length=63, description="of the taint")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="of the taint; unset: of every effect"
    )
    seconds: int | None = Field(
        default=None,
        ge=0,
        description="of a NoExecute: for so long after it came; unset: for good",
    )


class Workload(Model):
    """What an IDC and a witness have in common."""

    region: ObjectName = Field(description="the Region in this namespace that it belongs to")
    image: ImageName = Field(description="with all roles in it")
    image_pull_secret: ObjectName | None = Field(
        default=None, description="for a registry that asks for one"
    )
    certificates: Certificates = Field(description="its own, and the region's keys")
    storage: Storage = Field(default=Storage(), description="its volume, which outlives the pod")
    resources: Resources = Field(default=Resources(), description="what its pod asks for")
    secrets: list[ObjectName] = Field(
        default_factory=list,
        max_length=16,
        description="Secrets of engines, below /etc/imctl/secrets/NAME/: there the region file's "
        "`ca_file` and so on find their files",
    )
    node_selector: dict[str, str] = Field(
        default_factory=dict, max_length=16, description="labels of the nodes that may run it"
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=16, description="taints of nodes that may run it"
    )
    priority_class: ObjectName | None = Field(
        default=None, description="the PriorityClass of its pod, who goes first where room is short"
    )
    termination_grace_s: int | None = Field(
        default=None,
        ge=5,
        le=3600,
        description="for its pod to end in order before it is killed; default: 30",
    )
    service: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(
        default="ClusterIP",
        description="type of its Services, for clients and for peers; NodePort: at the very ports "
        "of the endpoints, which must be ones that nodes give away",
    )
    paused: bool = Field(default=False, description="true: the operator leaves it as it is")


class IdcSpec(Workload):
    """One IDC of a region, run in this namespace."""

    idc: Name = Field(description="which one, by its name in the Region")
    gateways: Literal["inside", "apart"] = Field(
        default="inside",
        description="inside: its pod has all roles; apart: its gateways are the pods of the "
        "GatewayCluster of its name, and its own has the other roles",
    )
    cores: Literal["own", "shared"] = Field(
        default="own",
        description="own: its core is the one in its pod; shared: that one stands by (`--standby`) "
        "with those of the IMCluster of its name, and one of all serves; with `gateways: apart`",
    )
    role_certificate: ObjectName | None = Field(
        default=None,
        description="a Secret with `ca.crt`, `tls.crt`, `tls.key`: the region's CA and the "
        "certificate of a role; with a viewer's the status shows what the process says of itself, "
        "and its node is not drained while it has clients; with an operator's the IDC is also "
        "drained before it goes",
    )
    deletion: Literal["drain", "at_once"] = Field(
        default="drain",
        description="drain: an IDC with `role_certificate` stays until it is drained, failed or "
        "retired; at_once: it goes as it is, also when its deletion waits already",
    )
    drills_from: list[ObjectName] = Field(
        default_factory=list,
        max_length=16,
        description="drills may break it: those of DrillRuns in these namespaces (its own only "
        "when it is named), and those of whoever may change this object and exec into its pod; "
        "its process takes faults from an admin's certificate then",
    )


class WitnessSpec(Workload):
    """The witness of a region, run in this namespace."""


class Condition(Model):
    """As everywhere in Kubernetes."""

    type: str = Field(description="what is judged")
    status: Literal["True", "False", "Unknown"] = Field(description="whether it is so")
    reason: str = Field(description="in one word")
    message: str = Field(default="", description="in a sentence")
    lastTransitionTime: str = Field(description="when the status last changed")
    observedGeneration: int = Field(default=0, description="the generation that was judged")


class Validity(StrEnum):
    VALID = "Valid"
    INVALID = "Invalid"


class RegionStatus(Model):
    """What the operator makes of it."""

    phase: Validity | None = Field(default=None, description="whether `imctl validate` takes it")
    problems: list[str] = Field(
        default_factory=list, description="in the words of `imctl validate`"
    )
    observed_generation: int = Field(default=0, description="the generation that this is about")


class Phase(StrEnum):
    BLOCKED = "Blocked"  # something that it needs is not there, or is wrong
    PAUSED = "Paused"
    STARTING = "Starting"
    SERVING = "Serving"
    UNREADY = "Unready"  # it has served and does not now
    DELETING = "Deleting"
    DOWN = "Down"  # a drill has killed it and keeps it down


class WorkloadStatus(Model):
    """Where it is on its way."""

    phase: Phase | None = Field(default=None, description="where it is on its way")
    pod: str = Field(default="", description="its pod")
    ready: bool = Field(
        default=False, description="it serves: its pod is ready, or another core of it"
    )
    blocked_by: list[str] = Field(
        default_factory=list, description="what it waits for, or what stands against it"
    )
    outdated: bool = Field(
        default=False,
        description="its pod has other settings than are wanted; it gets them when it is deleted",
    )
    observed_generation: int = Field(default=0, description="the generation that this is about")
    conditions: list[Condition] = Field(
        default_factory=list, description="Ready; of an IDC that can be asked Reachable, too"
    )


class LagStatus(Model):
    """How far the IDC is behind another one's messages."""

    peer: str = Field(description="the other IDC")
    ms: int = Field(description="what its last messages took to be folded here")
    records: int = Field(description="known to exist and not held here")


class AppliedStatus(Model):
    """How far the IDC has folded a log."""

    origin: str = Field(description="whose log: an IDC and its incarnation")
    lsns: list[int] = Field(description="the last lsn that is folded, by partition from 0 on")


class ProcessStatus(Model):
    """What the process says of itself."""

    state: str = Field(description="by the policy that it knows: active, draining, drained, ...")
    epoch: int = Field(description="of that policy")
    serving: bool = Field(description="clients are taken")
    sessions: int = Field(description="clients that are connected")
    lag: list[LagStatus] = Field(description="by other IDC")
    applied: list[AppliedStatus] = Field(
        default_factory=list,
        description="by origin; where nothing else changes it is up to 30 s old",
    )
    alarms: list[str] = Field(description="empty when all is well")


class IdcStatus(WorkloadStatus):
    """Where it is on its way, and what its process says."""

    process: ProcessStatus | None = Field(
        default=None, description="what it last said; with `role_certificate`"
    )
    kept_by: list[str] = Field(
        default_factory=list, description="why it is not deleted yet, though that is wanted"
    )
