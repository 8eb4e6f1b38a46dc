"""The table of kinds: what each is called, made of, and shown by."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel

from imcore.region.model import RegionSpec
from imctl.api import rules
from imctl.api.cores import ImClusterSpec, ImClusterStatus
from imctl.api.drills import DrillRunSpec, DrillRunStatus, DrillSpec, DrillStatus
from imctl.api.gateways import GatewayClusterSpec, GatewayClusterStatus
from imctl.api.model import IdcSpec, IdcStatus, RegionStatus, WitnessSpec, WorkloadStatus
from imctl.api.operation import TrafficOperationSpec, TrafficOperationStatus
from imctl.api.routes import RouteClusterSpec, RouteClusterStatus
from imctl.api.views import (
    GeoPolicySpec,
    GeoPolicyStatus,
    ReplicationSpec,
    ReplicationStatus,
)

GROUP = "imctl.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
CATEGORY = "im"  # `kubectl get im`


class Column(NamedTuple):
    name: str
    path: str
    type: str = "string"
    wide: bool = False  # only with `-o wide`


class Kind(NamedTuple):
    name: str
    plural: str
    short: str
    description: str
    spec: type[BaseModel]
    status: type[BaseModel]
    rules: rules.Rules
    columns: tuple[Column, ...]
    scales: bool = False  # by `spec.replicas`, with `replicas` and `selector` in its status

    @property
    def crd(self) -> str:
        return f"{self.plural}.{GROUP}"


_AGE = Column("Age", ".metadata.creationTimestamp", "date")
_WORKLOAD = (
    Column("Region", ".spec.region"),
    Column("Phase", ".status.phase"),
    Column("Ready", ".status.ready", "boolean"),
    Column("Pod", ".status.pod", wide=True),
    Column("Image", ".spec.image", wide=True),
    _AGE,
)

REGION = Kind(
    "Region", "regions", "imr",
    "A whole deployment: a region file, word for word. Each namespace that runs a part of it has "
    "the same one.",
    RegionSpec, RegionStatus, rules.REGION,
    (
        Column("Phase", ".status.phase"),
        Column("Partitions", ".spec.partitions", "integer"),
        Column("Default", ".spec.geo.default", wide=True),
        _AGE,
    ),
)  # fmt: skip
IDC = Kind(
    "IDC", "idcs", "idc",
    "One IDC of a Region, run in this namespace: a StatefulSet with one pod, which has all roles, "
    "or all but the gateways (GatewayCluster).",
    IdcSpec, IdcStatus, rules.IDC,
    (
        Column("IDC", ".spec.idc"),
        *_WORKLOAD[:-1],
        Column("State", ".status.process.state"),
        Column("Sessions", ".status.process.sessions", "integer"),
        Column("Epoch", ".status.process.epoch", "integer", wide=True),
        _AGE,
    ),
)  # fmt: skip
WITNESS = Kind(
    "Witness", "witnesses", "imw",
    "The witness of a Region, run in this namespace: a registry and a vote, without traffic.",
    WitnessSpec, WorkloadStatus, rules.WITNESS, _WORKLOAD,
)  # fmt: skip
TRAFFIC_OPERATION = Kind(
    "TrafficOperation", "trafficoperations", "imop",
    "One move of traffic of a Region, asked for once, with what became of it. Deleting it neither "
    "stops nor undoes the move.",
    TrafficOperationSpec, TrafficOperationStatus, rules.TRAFFIC_OPERATION,
    (
        Column("Move", ".spec.move"),
        Column("IDC", ".spec.idc"),
        Column("Target", ".spec.target"),
        Column("Phase", ".status.phase"),
        Column("State", ".status.state"),
        Column("Operation", ".status.operation", wide=True),
        Column("Outcome", ".status.outcome", wide=True),
        _AGE,
    ),
)  # fmt: skip
DRILL_RUN = Kind(
    "DrillRun", "drillruns", "imdr",
    "One run of a drill on a Region: IDCs are broken on purpose under load, and what the clients "
    "saw is judged. Deleting it ends the run; it goes once all is undone.",
    DrillRunSpec, DrillRunStatus, rules.DRILL_RUN,
    (
        Column("Region", ".spec.region"),
        Column("Drill", ".spec.drill"),
        Column("Phase", ".status.phase"),
        Column("Verdict", ".status.verdict"),
        Column("RTO", ".status.rto_s", "number"),
        Column("Lost", ".status.lost", "integer"),
        Column("Report", ".status.report", wide=True),
        Column("Reason", ".status.reason", wide=True),
        _AGE,
    ),
)  # fmt: skip
DRILL = Kind(
    "Drill", "drills", "imd",
    "A drill again and again: a DrillRun is made at each of its times. Its runs go with it.",
    DrillSpec, DrillStatus, rules.DRILL,
    (
        Column("Cron", ".spec.cron"),
        Column("Zone", ".spec.timezone", wide=True),
        Column("Phase", ".status.phase"),
        Column("Next", ".status.next"),
        Column("Last", ".status.last_run"),
        Column("Verdict", ".status.last_verdict"),
        _AGE,
    ),
)  # fmt: skip
REPLICATION = Kind(
    "Replication", "replications", "imrep",
    "How far the IDCs of a Region are behind each other, against an objective. What copies the "
    "logs stands in the Region; where that is MirrorMaker 2, this can run it.",
    ReplicationSpec, ReplicationStatus, rules.VIEW,
    (
        Column("Region", ".spec.region"),
        Column("Objective", ".spec.lag_slo_ms", "integer"),
        Column("Worst", ".status.worst_lag_ms", "integer"),
        Column("Within", ".status.conditions[?(@.type=='WithinObjective')].status"),
        Column("Mirrored", ".status.conditions[?(@.type=='Mirrored')].status"),
        Column("Why", ".status.conditions[?(@.type=='WithinObjective')].message", wide=True),
        _AGE,
    ),
)  # fmt: skip
GEO_POLICY = Kind(
    "GeoPolicy", "geopolicies", "imgeo",
    "Which policy of a Region is committed, and which one each ipconf serves. It changes nothing: "
    "shards, weights, fallbacks and safety rules stand in the Region, and a TrafficOperation moves "
    "traffic.",
    GeoPolicySpec, GeoPolicyStatus, rules.VIEW,
    (
        Column("Region", ".spec.region"),
        Column("Epoch", ".status.epoch", "integer"),
        Column("Served", ".status.conditions[?(@.type=='Served')].status"),
        Column("Operation", ".status.operation"),
        Column("Why", ".status.conditions[?(@.type=='Served')].message", wide=True),
        _AGE,
    ),
)  # fmt: skip
GATEWAY_CLUSTER = Kind(
    "GatewayCluster", "gatewayclusters", "imgw",
    "The gateways of an IDC in pods of their own, beside the pod with its other roles.",
    GatewayClusterSpec, GatewayClusterStatus, rules.GATEWAY_CLUSTER,
    (
        Column("Phase", ".status.phase"),
        Column("Wanted", ".spec.replicas", "integer"),
        Column("Ready", ".status.ready", "integer"),
        Column("Updated", ".status.updated", "integer"),
        Column("Connections", ".status.connections", "integer"),
        Column("Step", ".status.rollout.step", "integer", wide=True),
        Column("Waits", ".status.rollout.waiting_for", wide=True),
        Column("Image", ".spec.image", wide=True),
        _AGE,
    ),
    scales=True,
)  # fmt: skip
ROUTE_CLUSTER = Kind(
    "RouteCluster", "routeclusters", "imrt",
    "The route instances of an IDC, which stand between its core and its gateways: what is for "
    "many gateways is sent once to each instance. They hold no data.",
    RouteClusterSpec, RouteClusterStatus, rules.ROUTE_CLUSTER,
    (
        Column("Phase", ".status.phase"),
        Column("Wanted", ".spec.replicas", "integer"),
        Column("Ready", ".status.ready", "integer"),
        Column("Updated", ".status.updated", "integer"),
        Column("Image", ".spec.image", wide=True),
        _AGE,
    ),
    scales=True,
)  # fmt: skip
IM_CLUSTER = Kind(
    "IMCluster", "imclusters", "imcore",
    "Cores of an IDC beside the one in its own pod: of all one serves, the others stand by and "
    "take its place when it is gone. For an IDC whose log, KV and registry are reached over a "
    "network.",
    ImClusterSpec, ImClusterStatus, rules.IM_CLUSTER,
    (
        Column("Phase", ".status.phase"),
        Column("Wanted", ".spec.replicas", "integer"),
        Column("Ready", ".status.ready", "integer"),
        Column("Updated", ".status.updated", "integer"),
        Column("Serving", ".status.serving"),
        Column("Image", ".spec.image", wide=True),
        _AGE,
    ),
    scales=True,
)  # fmt: skip
KINDS = (
    REGION, IDC, IM_CLUSTER, GATEWAY_CLUSTER, ROUTE_CLUSTER, WITNESS, TRAFFIC_OPERATION, DRILL,
    DRILL_RUN, REPLICATION, GEO_POLICY,
)  # fmt: skip
