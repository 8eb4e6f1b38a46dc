"""Rules between fields that an API server judges, as CEL (messages as `imctl validate` has them).

Keyed by the field below which `self` is; "[]" stands for a list's items, "{}" for a map's values.
What CEL cannot say at a bearable price, such as networks that two shards claim, the operator says
in the Region's status.
"""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    cel: str
    message: str


Rules = dict[str, list[Rule]]

_FIXED = "not changeable on a live deployment"


def _fixed(*fields: str) -> list[Rule]:
    return [Rule(f"self.{field} == oldSelf.{field}", f"{field}: {_FIXED}") for field in fields]


def _fixed_optional(field: str) -> Rule:
    same = f"(!has(self.{field}) || self.{field} == oldSelf.{field})"
    return Rule(
        f"has(self.{field}) == has(oldSelf.{field}) && {same}",
        f"{field}: {_FIXED}",
    )


def _beside(one: str, other: str) -> Rule:
    return Rule(
        f"!has(self.{one}) || has(self.{other})", f"expected `{other}` beside `{one}`, got none"
    )


def _credentials() -> list[Rule]:
    pairs = (
        ("cert_file", "key_file"), ("key_file", "cert_file"), ("username", "password_file"),
        ("password_file", "username"), ("cert_file", "ca_file"), ("username", "ca_file"),
    )  # fmt: skip
    return [_beside(one, other) for one, other in pairs]


_IDCS = "spec.idcs[]"
_KAFKA = f"{_IDCS}.engines.log.kafka"

REGION: Rules = {
    "": [
        Rule(
            "self.metadata.name.matches('^[a-z][a-z0-9-]{0,30}$')",
            "metadata.name: expected a name (lowercase letters, digits and '-', a letter first, "
            "at most 31 characters)",
        ),
    ],
    "spec": [
        *_fixed("partitions"),
        _fixed_optional("links"),
        Rule(
            "self.idcs.map(i, i.name) == oldSelf.idcs.map(i, i.name)",
            f"the set and order of IDCs: {_FIXED}",
        ),
        _fixed_optional("witness"),
        Rule(
            "self.idcs.size() != 2 || has(self.witness)",
            "witness: expected a witness, because two IDCs alone have no majority when one is "
            "lost, got none; add `witness: {peer: HOST:PORT}` under spec",
        ),
        Rule(
            "self.geo.shards.all(s, s.weights.all(k, self.idcs.exists(i, i.name == k)))",
            "geo.shards: expected weights of IDCs of this region, got another name",
        ),
        Rule(
            "self.geo.shards.all(s, !has(s.fallback) || "
            "s.fallback.all(k, self.idcs.exists(i, i.name == k)))",
            "geo.shards: expected a fallback among the IDCs of this region, got another name",
        ),
        Rule(
            "self.safety.active_idcs_min < (self.idcs.size() > 2 ? self.idcs.size() : 2)",
            "safety.active_idcs_min: expected less than the number of IDCs, or no IDC could ever "
            "be taken out",
        ),
        Rule(
            "self.messages.ack != 'replicated' || self.messages.replicas < self.idcs.size()",
            "messages.replicas: expected at most the number of other IDCs",
        ),
    ],
    f"{_IDCS}.endpoints": _fixed("peer"),
    _KAFKA: [
        *_credentials(),
        Rule(
            "self.min_insync_replicas <= self.replication_factor",
            "min_insync_replicas: expected at most the replication factor",
        ),
        Rule(
            "self.durability != 'replicated' || self.min_insync_replicas >= 2",
            "durability: expected acked records that survive a crash of one machine, got "
            "`replicated` with `min_insync_replicas: 1`; say `durability: flush`",
        ),
    ],
    f"{_IDCS}.engines.registry.etcd": _credentials(),
    f"{_IDCS}.engines.blobs.s3": [
        Rule(
            "!has(self.ca_file) || self.endpoint.startsWith('https://')",
            "ca_file: expected an `endpoint: https://...` beside it",
        ),
    ],
    "spec.geo": [
        Rule(
            "self.shards.exists(s, s.name == self.default)",
            "default: expected the name of a shard",
        ),
        Rule(
            "self.shards.map(s, s.name) == oldSelf.shards.map(s, s.name)",
            f"the set and order of shards: {_FIXED}",
        ),
    ],
    "spec.geo.shards[]": [
        *_fixed("weights"),
        _fixed_optional("fallback"),
        Rule(
            "self.weights.exists(k, self.weights[k] > 0.0)",
            "weights: expected an IDC with a weight above 0, got none; give one IDC a weight, "
            "such as 1",
        ),
        Rule(
            "self.weights.all(k, self.weights[k] >= 0.0)",
            "weights: expected a weight of at least 0",
        ),
    ],
    "spec.safety.freeze[]": [
        Rule(
            "timestamp(self.start) < timestamp(self.end)",
            "expected RFC 3339 times, `end` after `start`",
        ),
    ],
}

_TOLERATION = [
    Rule(
        "has(self.key) || self.operator == 'Exists'",
        "key: expected one with `operator: Equal`; `operator: Exists` without one tolerates all",
    ),
    Rule(
        "self.operator != 'Exists' || !has(self.value) || self.value == ''",
        "value: expected none with `operator: Exists`",
    ),
    Rule(
        "!has(self.seconds) || (has(self.effect) && self.effect == 'NoExecute')",
        "seconds: expected `effect: NoExecute` beside it",
    ),
]

_WORKLOAD: Rules = {
    "": [
        Rule(
            "self.metadata.name.matches('^[a-z][a-z0-9-]{0,39}$')",
            "metadata.name: expected a name (lowercase letters, digits and '-', a letter first, "
            "at most 40 characters)",
        ),
    ],
    "spec": [*_fixed("region", "storage")],
    "spec.certificates": [
        Rule(
            "has(self.secret) != has(self.issuer)",
            "expected either `secret` or `issuer`, got both or none",
        ),
    ],
    "spec.tolerations[]": _TOLERATION,
}

IDC: Rules = {
    **_WORKLOAD,
    "spec": [
        *_WORKLOAD["spec"],
        *_fixed("idc"),
        Rule(
            "self.cores != 'shared' || self.gateways == 'apart'",
            "cores: expected `gateways: apart` beside `shared`",
        ),
    ],
}
WITNESS: Rules = _WORKLOAD

TRAFFIC_OPERATION: Rules = {
    "": [
        Rule(
            "self.metadata.name.matches('^[a-z0-9][a-z0-9-]{0,62}$')",
            "metadata.name: expected lowercase letters, digits and '-', at most 63 characters",
        ),
    ],
    "spec": [
        Rule("self == oldSelf", "not changeable: another wish is another TrafficOperation"),
        Rule(
            "(self.move == 'switchover') == has(self.target)",
            "target: expected one with a switchover, and with nothing else",
        ),
        Rule(
            "!has(self.target) || self.target != self.idc",
            "target: expected another IDC than `idc`",
        ),
        Rule(
            "self.move != 'failover' || (self.rate == 0 && self.max_lag_ms == 0)",
            "expected neither `rate` nor `max_lag_ms` with a failover, which is at once",
        ),
    ],
}

_EITHER = Rule(
    "has(self.drill) != has(self.experiment)",
    "expected either `drill` or `experiment`, got both or none",
)

DRILL_RUN: Rules = {
    "": TRAFFIC_OPERATION[""],
    "spec": [
        Rule("self == oldSelf", "not changeable: another run is another DrillRun"),
        _EITHER,
    ],
}

DRILL: Rules = {
    "": [
        Rule(
            "self.metadata.name.matches('^[a-z0-9][a-z0-9-]{0,49}$')",
            "metadata.name: expected lowercase letters, digits and '-', at most 50 characters",
        ),
    ],
    "spec.run": [_EITHER],
    "spec.blackouts[]": REGION["spec.safety.freeze[]"],
}

VIEW: Rules = {"": TRAFFIC_OPERATION[""], "spec": _fixed("region")}


def _beside_idc(kind: str) -> Rules:
    """Of kinds of which an IDC has one, so that `idc` does not change either."""
    why = f"metadata.name: expected that of its IDC (`spec.idc`), which has one {kind}"
    return {
        "": [Rule("self.metadata.name == self.spec.idc", why)],
        "spec.tolerations[]": _TOLERATION,
    }


_BOUNDS = [Rule("self.min <= self.max", "max: expected at least `min`")]
GATEWAY_CLUSTER: Rules = {**_beside_idc("GatewayCluster"), "spec.autoscaling": _BOUNDS}
ROUTE_CLUSTER: Rules = {**_beside_idc("RouteCluster"), "spec.autoscaling": _BOUNDS}
IM_CLUSTER: Rules = {**_beside_idc("IMCluster"), "spec": _fixed("storage")}
