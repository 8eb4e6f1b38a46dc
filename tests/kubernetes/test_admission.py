"""What `kubectl apply` answers to objects that are wrong, and that `kubectl explain` reads well."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.errors import Failed
from imctl.testing.cluster.cluster import Cluster as ApiServer

REGIONS = Path(__file__).parents[2] / "regions"
Edit = Callable[[Any], None]

KAFKA = {"brokers": ["kafka:9092"]}
IDC: dict[str, Any] = {
    "apiVersion": "imctl.dev/v1alpha1",
    "kind": "IDC",
    "metadata": {"name": "fra"},
    "spec": {
        "region": "two-idc",
        "idc": "fra",
        "image": "imctl:1",
        "certificates": {"secret": "fra-certificate", "region_keys": "region-keys"},
    },
}
WITNESS = copy.deepcopy(IDC) | {"kind": "Witness"}
del WITNESS["spec"]["idc"]


OPERATION: dict[str, Any] = {
    "apiVersion": "imctl.dev/v1alpha1",
    "kind": "TrafficOperation",
    "metadata": {"name": "move"},
    "spec": {
        "region": "two-idc",
        "move": "switchover",
        "idc": "fra",
        "target": "dub",
        "certificate": "imctl-operator",
    },
}


DRILL_RUN: dict[str, Any] = {
    "apiVersion": "imctl.dev/v1alpha1",
    "kind": "DrillRun",
    "metadata": {"name": "loss"},
    "spec": {
        "region": "two-idc",
        "drill": "idc-loss",
        "var": {"victim": "dub"},
        "certificate": "imctl-admin",
        "region_keys": "region-keys",
        "namespaces": {"dub": "im-dub"},
    },
}


DRILL: dict[str, Any] = {
    "apiVersion": "imctl.dev/v1alpha1",
    "kind": "Drill",
    "metadata": {"name": "weekly"},
    "spec": {
        "cron": "0 10 * * TUE",
        "timezone": "Europe/Berlin",
        "blackouts": [
            {"start": "2026-12-20T00:00:00Z", "end": "2027-01-06T00:00:00Z", "reason": "holidays"},
        ],
        "run": DRILL_RUN["spec"],
    },
}


REPLICATION: dict[str, Any] = {
    "apiVersion": "imctl.dev/v1alpha1",
    "kind": "Replication",
    "metadata": {"name": "flows"},
    "spec": {"region": "two-idc", "certificate": "imctl-viewer"},
}
GATEWAYS: dict[str, Any] = {
    "apiVersion": "imctl.dev/v1alpha1",
    "kind": "GatewayCluster",
    "metadata": {"name": "fra"},
    "spec": {"idc": "fra", "replicas": 2},
}
ROUTES = GATEWAYS | {"kind": "RouteCluster"}
CORES = GATEWAYS | {"kind": "IMCluster"}
GEO_POLICY = REPLICATION | {"kind": "GeoPolicy", "metadata": {"name": "policy"}}


def region() -> Any:
    return yaml.safe_load((REGIONS / "two-idc.yaml").read_text())


def put(path: str, value: Any) -> Edit:
    """``put("spec.idcs.0.name", "x")``; None removes it."""
    *way, last = path.split(".")

    def edit(document: Any) -> None:
        for step in way:
            document = document[int(step)] if step.isdigit() else document.setdefault(step, {})
        key = int(last) if last.isdigit() else last
        if value is None:
            del document[key]
        else:
            document[key] = value

    return edit


def kafka(**changes: Any) -> Edit:
    return put("spec.idcs.0.engines", {"log": {"kafka": KAFKA | changes}})


BAD_REGIONS: dict[str, tuple[Edit, str]] = {
    "no IDC": (put("spec.idcs", []), "should have at least 1 items"),
    "partitions": (put("spec.partitions", 0), "should be greater than or equal to 1"),
    "a name twice": (put("spec.idcs.1.name", "fra"), 'Duplicate value: {"name":"fra"}'),
    "a name with capitals": (put("spec.idcs.0.name", "Fra"), "should match '^[a-z]"),
    "the region's name": (put("metadata.name", "two.idc"), "metadata.name: expected a name"),
    "an address without a port": (put("spec.idcs.0.endpoints.peer", "fra"), "should match"),
    "no endpoints": (put("spec.idcs.0.endpoints", None), "spec.idcs[0].endpoints: Required"),
    "latitude": (put("spec.idcs.0.place.latitude", 91), "less than or equal to 90"),
    "sessions": (put("spec.idcs.0.capacity", {"sessions": 0}), "greater than 0"),
    "an unknown field": (put("spec.idcs.0.citty", "x"), 'unknown field "spec.idcs[0].citty"'),
    "embedded, in words": (
        put("spec.idcs.0.engines", {"kv": "embedded"}), "engines.kv: Invalid value",
    ),
    "an engine without a name": (
        put("spec.idcs.0.engines", {"kv": {}}), "should have at least 1 properties",
    ),
    "a key without a certificate": (
        kafka(key_file="/k"), "expected `cert_file` beside `key_file`, got none",
    ),
    "a user without TLS": (
        kafka(username="im", password_file="/p"), "expected `ca_file` beside `username`",
    ),
    "more in sync than there are": (
        kafka(min_insync_replicas=4), "min_insync_replicas: expected at most the replication",
    ),
    "one copy in memory": (
        kafka(min_insync_replicas=1), "say `durability: flush`",
    ),
    "two IDCs without a witness": (
        put("spec.witness", None), "two IDCs alone have no majority when one is lost",
    ),
    "a weight for nobody": (
        put("spec.geo.shards.0.weights", {"sin": 1}), "expected weights of IDCs of this region",
    ),
    "a fallback to nobody": (
        put("spec.geo.shards.0.fallback", ["sin"]), "expected a fallback among the IDCs",
    ),
    "no weight above 0": (
        put("spec.geo.shards.0.weights", {"fra": 0}), "expected an IDC with a weight above 0",
    ),
    "a weight below 0": (
        put("spec.geo.shards.0.weights", {"fra": 1, "dub": -1}), "a weight of at least 0",
    ),
    "no such default": (put("spec.geo.default", "moon"), "expected the name of a shard"),
    "none could be taken out": (
        put("spec.safety", {"active_idcs_min": 2}), "less than the number of IDCs",
    ),
    "more replicas than IDCs": (
        put("spec.messages", {"ack": "replicated", "replicas": 2}),
        "expected at most the number of other IDCs",
    ),
    "an ack of another kind": (put("spec.messages", {"ack": "never"}), 'supported values: "stored'),
    "a window that ends first": (
        put("spec.safety", {"freeze": [
            {"start": "2026-12-24T00:00:00Z", "end": "2026-12-23T00:00:00Z"}]}),
        "`end` after `start`",
    ),
    "loss": (put("spec.links.0.loss", 0.9), "should be less than or equal to 0.5"),
    "a link with one end": (put("spec.links.0.between", ["fra"]), "at least 2 items"),
}  # fmt: skip

BAD_IDCS: dict[str, tuple[Edit, str]] = {
    "no region": (put("spec.region", None), "spec.region: Required value"),
    "no image": (put("spec.image", None), "spec.image: Required value"),
    "a name that is too long": (put("metadata.name", "a" * 41), "at most 40 characters"),
    "two sources of certificates": (
        put("spec.certificates.issuer", {"name": "ca"}), "expected either `secret` or `issuer`",
    ),
    "no source of certificates": (
        put("spec.certificates.secret", None), "expected either `secret` or `issuer`",
    ),
    "a service of another type": (put("spec.service", "ExternalName"), "Unsupported value"),
    "a size without sense": (put("spec.storage", {"size": "much"}), "should match"),
    "replicas, of which there is one": (put("spec.replicas", 3), 'unknown field "spec.replicas"'),
    "a limit without sense": (put("spec.resources", {"cpu_limit": "two"}), "should match"),
    "a toleration of no key": (
        put("spec.tolerations", [{"value": "x"}]), "key: expected one with `operator: Equal`",
    ),
    "a toleration of a value and of every one": (
        put("spec.tolerations", [{"key": "k", "operator": "Exists", "value": "x"}]),
        "value: expected none with `operator: Exists`",
    ),
    "a toleration for a time of what evicts nobody": (
        put("spec.tolerations", [{"key": "k", "effect": "NoSchedule", "seconds": 9}]),
        "seconds: expected `effect: NoExecute` beside it",
    ),
    "no time to end": (put("spec.termination_grace_s", 0), "greater than or equal to 5"),
    "several cores with gateways inside": (
        put("spec.cores", "shared"), "cores: expected `gateways: apart` beside `shared`",
    ),
}  # fmt: skip

BAD_OPERATIONS: dict[str, tuple[Edit, str]] = {
    "an unknown move": (put("spec.move", "retire"), 'supported values: "drain"'),
    "no certificate": (put("spec.certificate", None), "spec.certificate: Required value"),
    "a switchover to nobody": (put("spec.target", None), "target: expected one with a switchover"),
    "a drain with a target": (put("spec.move", "drain"), "target: expected one with a switchover"),
    "to itself": (put("spec.target", "fra"), "target: expected another IDC than `idc`"),
    "a failover at a rate": (
        lambda document: document["spec"].update(move="failover", target=None, rate=9),
        "expected neither `rate` nor `max_lag_ms`",
    ),
    "two overrides": (put("spec.overrides", ["headroom", "freeze"]), "must have at most 1 item"),
}  # fmt: skip

BAD_DRILL_RUNS: dict[str, tuple[Edit, str]] = {
    "neither by name nor as a file": (
        put("spec.drill", None), "expected either `drill` or `experiment`, got both or none",
    ),
    "both": (put("spec.experiment", "title: x"), "expected either `drill` or `experiment`"),
    "a path": (put("spec.drill", "../idc-loss"), "should match '^[a-z]"),
    "a file of a size": (put("spec.experiment", "x" * 65_537), "may not be more than 65536"),
    "no certificate": (put("spec.certificate", None), "spec.certificate: Required value"),
    "a variable with capitals": (put("spec.var", {"Victim": "dub"}), "expected names ^[a-z]"),
    "a namespace of no IDC's name": (put("spec.namespaces", {"D": "x"}), "expected names ^[a-z]"),
}  # fmt: skip

BAD_DRILLS: dict[str, tuple[Edit, str]] = {
    "no run": (put("spec.run", None), "spec.run: Required value"),
    "a run of nothing": (put("spec.run.drill", None), "expected either `drill` or `experiment`"),
    "a blackout that ends first": (
        put("spec.blackouts.0.end", "2026-12-19T00:00:00Z"), "`end` after `start`",
    ),
    "a name without room for a time": (put("metadata.name", "a" * 51), "at most 50 characters"),
    "none kept": (put("spec.keep", 0), "greater than or equal to 1"),
}  # fmt: skip

BAD_VIEWS: dict[str, tuple[Any, Edit, str]] = {
    "no certificate": (REPLICATION, put("spec.certificate", None), "certificate: Required value"),
    "no objective": (REPLICATION, put("spec.lag_slo_ms", 0), "greater than 0"),
    "weights, which stand in the Region": (
        GEO_POLICY, put("spec.weights", {"fra": 1}), 'unknown field "spec.weights"',
    ),
}  # fmt: skip

BAD_GATEWAYS: dict[str, tuple[Edit, str]] = {
    "another name": (
        put("metadata.name", "edge"), "metadata.name: expected that of its IDC (`spec.idc`)",
    ),
    "bounds the wrong way round": (
        put("spec.autoscaling", {"min": 3, "max": 2, "connections": 1}),
        "max: expected at least `min`",
    ),
    "nothing to be scaled by": (
        put("spec.autoscaling", {"min": 1, "max": 2}), "connections: Required value",
    ),
    "too many": (put("spec.replicas", 65), "less than or equal to 64"),
    "a toleration of another effect": (
        put("spec.tolerations", [{"key": "k", "effect": "Never"}]), "Unsupported value",
    ),
    "certificates, which are the IDC's": (
        put("spec.certificates", {"secret": "x"}), 'unknown field "spec.certificates"',
    ),
}  # fmt: skip

BAD_ROUTES: dict[str, tuple[Edit, str]] = {
    "another name": (
        put("metadata.name", "edge"), "its IDC (`spec.idc`), which has one RouteCluster",
    ),
    "another IDC": (put("spec.idc", "dub"), "metadata.name: expected that of its IDC"),
    "no IDC": (put("spec.idc", None), "spec.idc: Required value"),
    "bounds the wrong way round": (
        put("spec.autoscaling", {"min": 3, "max": 2}), "max: expected at least `min`",
    ),
    "connections, which it does not count": (
        put("spec.autoscaling", {"min": 1, "max": 2, "connections": 9}),
        'unknown field "spec.autoscaling.connections"',
    ),
    "no CPU at all": (
        put("spec.autoscaling", {"min": 1, "max": 2, "cpu": 0}), "greater than or equal to 1",
    ),
    "too many": (put("spec.replicas", 17), "less than or equal to 16"),
    "none at once": (put("spec.rollout", {"max_surge": 0}), "greater than or equal to 1"),
    "a toleration of no key": (
        put("spec.tolerations", [{"value": "x"}]), "key: expected one with `operator: Equal`",
    ),
    "storage, of which they have none": (
        put("spec.storage", {"size": "1Gi"}), 'unknown field "spec.storage"',
    ),
}  # fmt: skip

BAD_CORES: dict[str, tuple[Edit, str]] = {
    "another name": (
        put("metadata.name", "edge"), "its IDC (`spec.idc`), which has one IMCluster",
    ),
    "no IDC": (put("spec.idc", None), "spec.idc: Required value"),
    "too many": (put("spec.replicas", 9), "less than or equal to 8"),
    "an autoscaler": (
        put("spec.autoscaling", {"min": 1, "max": 2}), 'unknown field "spec.autoscaling"',
    ),
    "a size without sense": (put("spec.storage", {"size": "much"}), "should match"),
    "a toleration of no key": (
        put("spec.tolerations", [{"value": "x"}]), "key: expected one with `operator: Equal`",
    ),
}  # fmt: skip

# (made as it is, then changed so)
FIXED_IN_REGION: dict[str, tuple[Edit, str]] = {
    "partitions": (put("spec.partitions", 8), "partitions: not changeable on a live deployment"),
    "an IDC's name": (put("spec.idcs.0.name", "ams"), "the set and order of IDCs"),
    "an IDC's peer endpoint": (
        put("spec.idcs.0.endpoints.peer", "fra:1"), "peer: not changeable",
    ),
    "weights": (put("spec.geo.shards.0.weights", {"dub": 1}), "weights: not changeable"),
    "fallback": (put("spec.geo.shards.0.fallback", None), "fallback: not changeable"),
    "the witness": (put("spec.witness.peer", "w:1"), "witness: not changeable"),
    "links": (put("spec.links.0.delay_ms", 1), "links: not changeable"),
    "a shard's name": (put("spec.geo.shards.1.name", "islands"), "the set and order of shards"),
}  # fmt: skip
FIXED_IN_OPERATION: dict[str, tuple[Edit, str]] = {
    "rate": (put("spec.rate", 9), "not changeable: another wish is another TrafficOperation"),
    "idc": (put("spec.idc", "ams"), "not changeable"),
}
FIXED_IN_DRILL_RUN: dict[str, tuple[Edit, str]] = {
    "var": (put("spec.var", {"victim": "fra"}), "not changeable: another run is another DrillRun"),
    "drill": (put("spec.drill", "planned-switchover"), "not changeable"),
}
FIXED_IN_CORES: dict[str, tuple[Edit, str]] = {
    "storage": (put("spec.storage", {"size": "1Gi"}), "storage: not changeable"),
}
FIXED_IN_IDC: dict[str, tuple[Edit, str]] = {
    "region": (put("spec.region", "other"), "region: not changeable"),
    "idc": (put("spec.idc", "dub"), "idc: not changeable"),
    "storage": (put("spec.storage", {"size": "1Gi"}), "storage: not changeable"),
}


def apply(server: ApiServer, namespace: str, document: Any) -> str:
    return server.kubectl("apply", "--namespace", namespace, "-f", "-", given=json.dumps(document))


def refused(server: ApiServer, document: Any, edit: Edit) -> str:
    edit(document)
    with pytest.raises(Failed) as raised:
        server.kubectl("create", "--dry-run=server", "-f", "-", given=json.dumps(document))
    return str(raised.value)


@pytest.mark.parametrize("case", BAD_REGIONS)
def test_a_bad_region_is_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_REGIONS[case]
    assert why in refused(api_server, region(), edit)


@pytest.mark.parametrize("case", BAD_IDCS)
def test_a_bad_idc_is_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_IDCS[case]
    assert why in refused(api_server, copy.deepcopy(IDC), edit)


@pytest.mark.parametrize("case", BAD_OPERATIONS)
def test_a_bad_operation_is_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_OPERATIONS[case]
    assert why in refused(api_server, copy.deepcopy(OPERATION), edit)


@pytest.mark.parametrize("case", BAD_DRILL_RUNS)
def test_a_bad_drill_run_is_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_DRILL_RUNS[case]
    assert why in refused(api_server, copy.deepcopy(DRILL_RUN), edit)


@pytest.mark.parametrize("case", BAD_VIEWS)
def test_a_bad_view_is_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    document, edit, why = BAD_VIEWS[case]
    assert why in refused(api_server, copy.deepcopy(document), edit)


@pytest.mark.parametrize("case", BAD_GATEWAYS)
def test_bad_gateways_are_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_GATEWAYS[case]
    assert why in refused(api_server, copy.deepcopy(GATEWAYS), edit)


@pytest.mark.parametrize("case", BAD_ROUTES)
def test_bad_routes_are_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_ROUTES[case]
    assert why in refused(api_server, copy.deepcopy(ROUTES), edit)


@pytest.mark.parametrize("case", BAD_CORES)
def test_bad_cores_are_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_CORES[case]
    assert why in refused(api_server, copy.deepcopy(CORES), edit)


@pytest.mark.parametrize(
    ("document", "kind", "short"),
    [
        (GATEWAYS, "gatewaycluster", "imgw"),
        (ROUTES, "routecluster", "imrt"),
        (CORES, "imcluster", "imcore"),
    ],
)
def test_they_are_scaled_by_kubectl(
    api_server: ApiServer, namespace: str, document: Any, kind: str, short: str
) -> None:
    apply(api_server, namespace, document)
    api_server.kubectl("scale", kind, "fra", "--replicas=3", "--namespace", namespace)
    path = ("-o", "jsonpath={.spec.replicas}")
    wanted = api_server.kubectl("get", short, "fra", "--namespace", namespace, *path)
    assert wanted == "3"


@pytest.mark.parametrize("case", BAD_DRILLS)
def test_a_bad_drill_is_refused_and_told_why(api_server: ApiServer, case: str) -> None:
    edit, why = BAD_DRILLS[case]
    assert why in refused(api_server, copy.deepcopy(DRILL), edit)


def test_a_drill_is_taken_and_may_change(api_server: ApiServer, namespace: str) -> None:
    apply(api_server, namespace, DRILL)
    changed = copy.deepcopy(DRILL)
    put("spec.cron", "0 9 * * *")(changed)
    assert "configured" in apply(api_server, namespace, changed)


@pytest.mark.parametrize("file", ["two-idc.yaml", "three-idc.yaml"])
def test_a_region_file_is_taken_as_it_is(api_server: ApiServer, namespace: str, file: str) -> None:
    command = ("apply", "--server-side", "--namespace", namespace, "-f", str(REGIONS / file))
    api_server.kubectl(*command)
    shown = ("get", "region", "--namespace", namespace, "-o", "jsonpath={.items[*].metadata}")
    before = api_server.kubectl(*shown)
    api_server.kubectl(*command)
    assert api_server.kubectl(*shown) == before  # nothing has changed


def test_what_a_live_deployment_cannot_change_is_refused(
    api_server: ApiServer, namespace: str
) -> None:
    tables = (
        (region(), FIXED_IN_REGION), (IDC, FIXED_IN_IDC), (OPERATION, FIXED_IN_OPERATION),
        (DRILL_RUN, FIXED_IN_DRILL_RUN), (CORES, FIXED_IN_CORES),
    )  # fmt: skip
    for document, cases in tables:
        apply(api_server, namespace, document)
        for case, (edit, why) in cases.items():
            changed = copy.deepcopy(document)
            edit(changed)
            with pytest.raises(Failed) as raised:
                apply(api_server, namespace, changed)
            assert why in str(raised.value), case


def test_what_a_live_deployment_can_change_is_taken(api_server: ApiServer, namespace: str) -> None:
    document = region()
    apply(api_server, namespace, document)
    for edit in (
        put("spec.idcs.0.gateways", 2),
        put("spec.client", {"grace_ms": 11_000}),
        put("spec.geo.shards.1.match.countries", ["GB"]),
        put("spec.safety", {"hold_ms": 4_000}),
    ):
        edit(document)
        assert "configured" in apply(api_server, namespace, document)


def test_they_are_listed_together(api_server: ApiServer, namespace: str) -> None:
    views = (REPLICATION, GEO_POLICY)
    for document in (region(), IDC, WITNESS | {"metadata": {"name": "london"}}, *views):
        apply(api_server, namespace, document)
    listed = api_server.kubectl("get", "im", "--namespace", namespace)
    assert {line.split()[0] for line in listed.splitlines() if "/" in line} == {
        "region.imctl.dev/two-idc", "idc.imctl.dev/fra", "witness.imctl.dev/london",
        "replication.imctl.dev/flows", "geopolicy.imctl.dev/policy",
    }  # fmt: skip
    head = api_server.kubectl("get", "idc", "--namespace", namespace).splitlines()[0]
    assert head.split() == [
        "NAME", "IDC", "REGION", "PHASE", "READY", "STATE", "SESSIONS", "AGE",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("idc", "One IDC of a Region, run in this namespace"),
        ("idc.spec.certificates.issuer", "cert-manager makes the Secret and renews it"),
        ("witness.spec.storage", "outlives the pod"),
        ("region.spec.safety.hold_ms", "Evidence must hold this long"),
        ("region.spec.idcs.engines.log.kafka.durability", "in the memory of the in-sync replicas"),
        ("idc.status.outdated", "it gets them when it is deleted"),
        ("idc.spec.tolerations", "taints of nodes that may run it"),
        ("trafficoperation.spec.expect_epoch", "refuse unless the policy is at it"),
        ("trafficoperation.status.blockers", "all that stands against it"),
        ("gatewaycluster.spec.rollout.keep", "keep their former settings"),
        ("imcluster.status.serving", "none of these, but the IDC's own"),
        ("routecluster.spec.autoscaling.cpu", "which it is to use on average"),
        ("geopolicy", "weights, fallbacks and safety rules stand in the Region"),
        ("drill.spec.blackouts", "when no run begins"),
        ("drillrun.spec.experiment", "the text of a drill file"),
        ("drillrun.status.lost", "acked canary messages that nobody has any more"),
    ],
)
def test_explain_reads_well(api_server: ApiServer, path: str, text: str) -> None:
    said = " ".join(api_server.kubectl("explain", path).split())
    assert text.lower() in said.lower()
