"""A sites file is judged whole, and makes the very objects that the operator takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore.errors import BadInput
from imcore.region.load import load_region
from imctl.api.gateways import GatewayClusterSpec
from imctl.api.model import IdcSpec, WitnessSpec
from imctl.api.routes import RouteClusterSpec
from imctl.reconcile.decide import decide, judge_region
from imctl.reconcile.objects import REGION_FILE
from imctl.reconcile.observed import Observed, Owner
from imctl.target import sites
from imctl.testing import golden
from tests.unit.test_gateway_cluster import roomy
from tests.unit.test_im_cluster import far
from tests.unit.test_operator_objects import GOLDEN

REGION = load_region(Path(__file__).parents[2] / "regions" / "two-idc.yaml")
FIGURES = {"process_mib": 86.0, "im_mib": 1024.0, "connection_kib": 26.5}
GOOD: dict[str, Any] = {
    "sites": {
        "fra": {"context": "prod-fra", "namespace": "im"},
        "dub": {"context": "prod-dub", "namespace": "im", "spec": {"service": "NodePort"}},
        "witness": {"namespace": "im-london"},
    },
    "spec": {"image": "imctl:1", "service": "LoadBalancer"},
}
PKI = dict.fromkeys(("ca.pem", "fra.pem", "fra.key", "region-keys.json"), b"x")


def read(document: Any) -> sites.Sites:
    return sites.read(yaml.safe_dump(document), REGION, "sites.yaml")


def test_what_is_said_of_one_stands_over_what_is_said_of_all() -> None:
    found = read(GOOD)
    services = {part: sites.spec_of(part, found, REGION).service for part in found.sites}
    assert services == {"fra": "LoadBalancer", "dub": "NodePort", "witness": "LoadBalancer"}
    assert isinstance(sites.spec_of("witness", found, REGION), WitnessSpec)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"sites": {"fra": {"namespace": "im"}, "mars": {"namespace": "im"}}},
            "sites: expected dub, fra, witness, the parts of two-idc, got fra, mars; "
            "add `witness: {namespace: ...}`, add `dub: {namespace: ...}`, remove mars",
        ),
        ({"spec": {}}, "sites.yaml: sites.dub.spec.image: expected"),
        ({"spec": {"image": "i", "servic": "x"}}, "sites.yaml: sites.dub.spec.servic: expected"),
        ({"sites": {"fra": {"namespace": "Im"}}}, "sites.yaml: sites.fra.namespace: expected"),
        ({"contexts": {}}, "sites.yaml: contexts: expected"),
    ],
)
def test_a_wrong_one_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput) as refused:
        read(GOOD | changes)
    assert why in str(refused.value)


def with_gateways(gateways: Any, part: str = "fra", **more: Any) -> dict[str, Any]:
    placed = GOOD["sites"][part] | {"gateways": gateways} | more
    return GOOD | {"sites": GOOD["sites"] | {part: placed}}


@pytest.mark.parametrize(
    ("gateways", "part", "more", "why"),
    [
        ({"replica": 2}, "fra", {}, "sites.fra.gateways.replica: expected"),
        ({"replicas": "x"}, "fra", {}, "sites.fra.gateways.replicas: expected"),
        (
            {"replicas": 5}, "fra", {},
            "sites.fra.gateways.replicas: expected at most 4, the `gateways` of fra in the region "
            "file, got 5; lower it, or raise that",
        ),
        (
            {"autoscaling": {"min": 1, "max": 9, "connections": 8000}}, "fra", {},
            "sites.fra.gateways.autoscaling.max: expected at most 4, the `gateways` of fra",
        ),
        (
            {"autoscaling": {"min": 3, "max": 2, "connections": 8000}}, "fra", {},
            "sites.fra.gateways.autoscaling.max: expected at least `min` (3), got 2",
        ),
        (
            {"autoscaling": {"min": 1, "max": 2, "connections": 8000}, "replicas": 2}, "fra", {},
            "sites.fra.gateways.replicas: expected nothing beside `autoscaling`, which sets it; "
            "remove it",
        ),
        ({"idc": "dub"}, "fra", {}, "sites.fra.gateways.idc: expected nothing, it is fra"),
        (
            {}, "fra", {"spec": {"gateways": "inside"}},
            "sites.fra.spec.gateways: expected apart beside `gateways`, got inside; remove it",
        ),
        ({}, "witness", {}, "sites.witness.gateways: expected nothing, witness is the witness"),
        ([], "fra", {}, "sites.fra.gateways: expected"),
    ],
)  # fmt: skip
def test_wrong_gateways_are_refused(
    gateways: Any, part: str, more: dict[str, Any], why: str
) -> None:
    text = yaml.safe_dump(with_gateways(gateways, part, **more))
    with pytest.raises(BadInput) as refused:
        sites.read(text, roomy(), "sites.yaml")
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"sites.yaml: {why}")


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (
            GOOD | {"kind": "Region"},
            "kind: expected one of sites, spec, got the unknown field `kind`; remove it",
        ),
        (
            GOOD | {"spec": {**GOOD["spec"], "imge": "i"}},
            "got the unknown field `imge`; did you mean `image`?",
        ),
        (
            with_gateways({"replica": 2}),
            "got the unknown field `replica`; did you mean `replicas`?",
        ),
    ],
)
def test_an_unknown_field_is_told_the_known_ones_of_its_place(
    document: dict[str, Any], why: str
) -> None:
    """A region file's were told: "expected one of kind, ..., got the unknown field `kind`"."""
    with pytest.raises(BadInput) as refused:
        sites.read(yaml.safe_dump(document), roomy(), "sites.yaml")
    assert why in str(refused.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    document = with_gateways({"replicas": 5, "idc": "dub"}) | {"spec": {"image": "i", "x": 1}}
    with pytest.raises(BadInput) as refused:
        sites.read(yaml.safe_dump(document), roomy(), "sites.yaml")
    assert len(str(refused.value).splitlines()) == 5


RICH = {
    "autoscaling": {"min": 1, "max": 3, "connections": 8000},
    "image": "imctl:2",
    "resources": {"cpu": "2"},
    "rollout": {"min_ready_s": 30, "reconnected": 80},
}


@pytest.mark.parametrize(("name", "gateways"), [("site", {}), ("site-with-all", RICH)])
def test_golden(name: str, gateways: dict[str, Any]) -> None:
    text = yaml.safe_dump(with_gateways(gateways))
    found, pki = sites.read(text, roomy(), "sites.yaml"), PKI
    made = sites.objects("fra", found, roomy(), pki)
    made = [each for each in made if each["kind"] not in ("Region", "Secret")]
    made += sites.beside("fra", found, roomy())
    golden.check(yaml.safe_dump_all(made, sort_keys=False, width=100), GOLDEN / f"{name}.yaml")
    GatewayClusterSpec.model_validate(made[-1]["spec"])


ROUTES = {"autoscaling": {"min": 2, "max": 4}, "rollout": {"max_surge": 2}}


@pytest.mark.parametrize(
    ("site", "why"),
    [
        ({"gateways": {}, "routes": {"replica": 2}}, "routes.replica: expected"),
        (
            {"routes": {}},
            "routes: expected `gateways` beside it, got none; add `gateways: {}`",
        ),
        (
            {"gateways": {}, "routes": {"autoscaling": {"min": 3, "max": 2}}},
            "routes.autoscaling.max: expected at least `min` (3), got 2",
        ),
        (
            {"gateways": {}, "routes": ROUTES | {"replicas": 2}},
            "routes.replicas: expected nothing beside `autoscaling`, which sets it; remove it",
        ),
        ({"gateways": {}, "routes": {"idc": "dub"}}, "routes.idc: expected nothing, it is fra"),
        ({"gateways": {}, "routes": []}, "routes: expected"),
    ],
)
def test_wrong_routes_are_refused(site: dict[str, Any], why: str) -> None:
    document = GOOD["sites"] | {"fra": {"namespace": "im"} | site}
    with pytest.raises(BadInput) as refused:
        sites.read(yaml.safe_dump(GOOD | {"sites": document}), roomy(), "sites.yaml")
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"sites.yaml: sites.fra.{why}")


def test_a_witness_has_no_routes() -> None:
    document = GOOD["sites"] | {"witness": {"namespace": "im", "routes": {}}}
    with pytest.raises(BadInput, match=r"sites\.witness\.routes: expected nothing"):
        read(GOOD | {"sites": document})


@pytest.mark.parametrize("apart", [{"gateways": {}}, {"spec": {"gateways": "apart"}}])
def test_routes_come_with_the_image_of_their_idc(apart: dict[str, Any]) -> None:
    fra = {"namespace": "im", "routes": ROUTES, **apart}
    found = read(GOOD | {"sites": GOOD["sites"] | {"fra": fra}})
    made = sites.beside("fra", found, REGION)[-1]
    assert (made["kind"], made["metadata"]) == ("RouteCluster", {"name": "fra", "namespace": "im"})
    assert made["spec"] == {"idc": "fra", "image": "imctl:1", **ROUTES}
    RouteClusterSpec.model_validate(made["spec"])


@pytest.mark.parametrize(
    ("site", "why"),
    [
        ({"gateways": {}, "cores": {"replicas": 9}}, "cores.replicas: expected"),
        ({"cores": {}}, "cores: expected `gateways` beside it, got none"),
        (
            {"gateways": {}, "cores": {}, "spec": {"cores": "own"}},
            "spec.cores: expected shared beside `cores`, got own; remove it",
        ),
        ({"gateways": {}, "cores": {"idc": "dub"}}, "cores.idc: expected nothing, it is fra"),
    ],
)
def test_wrong_cores_are_refused(site: dict[str, Any], why: str) -> None:
    document = GOOD["sites"] | {"fra": {"namespace": "im"} | site}
    with pytest.raises(BadInput) as refused:
        sites.read(yaml.safe_dump(GOOD | {"sites": document}), far(), "sites.yaml")
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"sites.yaml: sites.fra.{why}")


def test_cores_need_engines_that_they_reach() -> None:
    fra = {"namespace": "im", "gateways": {}, "cores": {}}
    document = GOOD | {"sites": GOOD["sites"] | {"fra": fra}}
    with pytest.raises(BadInput) as refused:
        read(document)
    lines = str(refused.value).splitlines()
    assert [line.partition("cores: ")[2].split()[0] for line in lines] == [
        "engines.log", "engines.kv", "engines.registry",
    ]  # fmt: skip
    found = sites.read(yaml.safe_dump(document), far(), "sites.yaml")
    spec = sites.spec_of("fra", found, far())
    assert isinstance(spec, IdcSpec) and (spec.cores, spec.gateways) == ("shared", "apart")
    cores = sites.beside("fra", found, far())[0]
    assert (cores["kind"], cores["spec"]) == ("IMCluster", {"idc": "fra"})


def test_a_witness_has_no_cores() -> None:
    document = GOOD["sites"] | {"witness": {"namespace": "im", "cores": {}}}
    with pytest.raises(BadInput, match=r"sites\.witness\.cores: expected nothing"):
        read(GOOD | {"sites": document})


def test_a_site_without_gateways_makes_none() -> None:
    assert sites.beside("fra", read(GOOD), REGION) == []


def test_no_yaml_is_refused() -> None:
    with pytest.raises(BadInput, match=r"sites\.yaml: expected YAML"):
        sites.read("{", REGION, "sites.yaml")


def test_its_objects_are_what_the_operator_makes_pods_of_with_the_mark_that_is_looked_for() -> None:
    *secrets, region, idc = sites.objects("fra", read(GOOD), REGION, PKI)
    assert {each["metadata"]["namespace"] for each in (*secrets, region, idc)} == {"im"}
    judged, problems = judge_region(region["metadata"]["name"], region["spec"])
    assert judged is not None and problems == []
    keys = {each["metadata"]["name"]: frozenset(each["data"]) for each in secrets}
    observed = Observed(region["spec"], keys, False, None)
    owner = Owner("IDC", "im", "fra", "u", 1, False)
    decision = decide(owner, IdcSpec.model_validate(idc["spec"]), observed, FIGURES)
    assert decision.status["blocked_by"] == []
    made = decision.apply[-1]
    assert made["metadata"]["name"] == sites.workload("fra", REGION)
    notes = made["spec"]["template"]["metadata"]["annotations"]
    assert notes[REGION_FILE] == sites.mark_of(REGION)


def test_labels_of_the_region_make_no_other_mark() -> None:
    labelled = REGION.metadata.model_copy(update={"labels": {"team": "im"}})
    assert sites.mark_of(REGION.model_copy(update={"metadata": labelled})) == sites.mark_of(REGION)
