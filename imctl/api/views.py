"""Specs and statuses of the kinds that show a Region at work and change nothing of it. What a
region is to be stands in its Region alone."""

from __future__ import annotations

from pydantic import Field

from imcore.region.model import Model
from imctl.api.model import Condition, ObjectName


class ViewSpec(Model):
    """Which region is looked at, and as whom."""

    region: ObjectName = Field(description="the Region in this namespace")
    certificate: ObjectName = Field(
        description="a Secret with `ca.crt`, `tls.crt`, `tls.key`: the region's CA and a viewer's "
        "certificate of it"
    )


class Mirror(Model):
    """MirrorMaker 2 into an IDC, run here: as Strimzi's KafkaMirrorMaker2 where the cluster has
    that kind, else as a Deployment."""

    idc: ObjectName = Field(
        description="into which; nothing is run while the Region names another mirror for it"
    )
    secret: ObjectName = Field(
        description="a Secret with what it shows to brokers: of `ca.crt`, `tls.crt`, `tls.key`, "
        "`password` those of which the Region names the files for that IDC's log on Kafka"
    )
    image: str | None = Field(
        default=None, description="of the Deployment; default: that of Apache's Kafka"
    )


class ReplicationSpec(ViewSpec):
    """How far each IDC may be behind the others, and what copies into the one that runs here."""

    lag_slo_ms: int = Field(
        default=5_000, gt=0, description="a flow that lags more is not within its objective"
    )
    mirror: Mirror | None = Field(
        default=None, description="MirrorMaker 2 to run; unset: none, or somebody else does"
    )


class FlowStatus(Model):
    """What one IDC has of another's messages."""

    source: str = Field(description="whose messages")
    target: str = Field(description="where they are copied to")
    engine: str = Field(
        description="what copies them: builtin; or mirrormaker2, and what it misses builtin"
    )
    lag_ms: int = Field(description="what the last ones took to be folded there")
    records: int = Field(description="known to exist and not held there")


class ReplicationStatus(Model):
    """The flows, as the IDCs that receive them say."""

    flows: list[FlowStatus] = Field(default_factory=list, description="of those that answer")
    worst_lag_ms: int | None = Field(default=None, description="of all flows")
    silent: list[str] = Field(default_factory=list, description="IDCs that do not answer, and why")
    blocked_by: list[str] = Field(default_factory=list, description="why nobody can be asked")
    mirror: str | None = Field(
        default=None, description="what runs for `spec.mirror`: its kind and name"
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="WithinObjective: every flow is, and every IDC answers. Mirrored: what "
        "`spec.mirror` asks for runs",
    )
    observed_generation: int = Field(default=0, description="the generation that this is about")


class GeoPolicySpec(ViewSpec):
    """Shards, weights, fallbacks and safety rules stand in the Region."""


class IdcPolicy(Model):
    """How an IDC stands in the policy, and by which one its ipconf sends clients."""

    idc: str = Field(description="which")
    state: str = Field(description="by the newest policy")
    ramp: int = Field(description="so many percent of its clients")
    epoch: int | None = Field(
        default=None, description="of the policy that its ipconf serves; unset: it does not answer"
    )
    stale: bool = Field(
        default=False, description="no majority has confirmed that lately, and its ipconf says so"
    )


class GeoPolicyStatus(Model):
    """The policy that is committed, and how far it is known."""

    epoch: int | None = Field(default=None, description="the newest that is committed")
    operation: str = Field(default="", description="the move that is under way")
    idcs: list[IdcPolicy] = Field(default_factory=list, description="of the region, each")
    blocked_by: list[str] = Field(default_factory=list, description="why nobody can be asked")
    conditions: list[Condition] = Field(
        default_factory=list, description="Served: every ipconf serves the newest policy"
    )
    observed_generation: int = Field(default=0, description="the generation that this is about")
