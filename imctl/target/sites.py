"""Where each part of a region runs on Kubernetes, and the objects that the operator is given. Pure.

sites:
  fra: {context: prod-fra, namespace: im, gateways: {replicas: 3}, routes: {replicas: 2}}
  dub: {context: prod-dub, namespace: im, spec: {storage: {size: 100Gi}}}
  witness: {context: prod-lon, namespace: im}
spec: {image: "registry/imctl:1", service: LoadBalancer}
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import Field, ValidationError

from imcore.errors import BadInput
from imcore.pki import REGION_KEYS
from imcore.region.explain import explain
from imcore.region.model import Model, Name, Region
from imcore.region.problem import dotted
from imctl.api.cores import ImClusterSpec
from imctl.api.gateways import GatewayClusterSpec
from imctl.api.kinds import (
    API_VERSION,
    GATEWAY_CLUSTER,
    IDC,
    IM_CLUSTER,
    REGION,
    ROUTE_CLUSTER,
    WITNESS,
)
from imctl.api.model import IdcSpec, ObjectName, WitnessSpec
from imctl.api.routes import RouteClusterSpec
from imctl.reconcile.besideobjects import Bounds
from imctl.reconcile.coreobjects import embedded
from imctl.reconcile.objects import CA, CERTIFICATE, KEY, hash_of, region_text
from imctl.reconcile.observed import Object

KEYS_SECRET = "region-keys"  # noqa: S105 - its name


class Site(Model):
    """``context``: of the kubeconfig; empty: the current one. ``spec``: fields of this IDC or
    Witness object, over those of all. ``gateways``, ``routes``, ``cores``: fields of its
    GatewayCluster, RouteCluster and IMCluster; None: it has none of this file."""

    namespace: ObjectName
    context: str = ""
    spec: dict[str, Any] = Field(default_factory=dict)
    gateways: dict[str, Any] | None = None
    routes: dict[str, Any] | None = None
    cores: dict[str, Any] | None = None


class Sites(Model):
    sites: dict[Name, Site]
    spec: dict[str, Any] = Field(default_factory=dict)


def read(text: str, region: Region, file: str) -> Sites:
    """Raises BadInput with one line for each problem."""
    try:
        found = Sites.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise BadInput(f"{file}: expected YAML, got {str(error).splitlines()[0]}") from error
    except ValidationError as error:
        raise _bad(file, error) from error
    if problems := list(_problems(found, region)):
        raise BadInput("\n".join(f"{file}: {problem}" for problem in problems))
    return found


def _problems(found: Sites, region: Region) -> Iterator[str]:
    """One line each: field, expected, got, what to do."""
    wanted, given = parts(region), list(found.sites)
    if set(wanted) != set(given):
        lacks = [f"add `{part}: {{namespace: ...}}`" for part in wanted if part not in given]
        more = [f"remove {part}" for part in given if part not in wanted]
        yield (
            f"sites: expected {', '.join(sorted(wanted))}, the parts of {region.metadata.name}, "
            f"got {', '.join(sorted(given))}; {', '.join([*lacks, *more])}"
        )
        return
    for part in found.sites:
        try:
            spec_of(part, found, region)
        except ValidationError as error:
            model = WitnessSpec if is_witness(part, region) else IdcSpec
            yield from _words(("sites", part, "spec"), error, model)
        if found.sites[part].gateways is not None:
            yield from _problems_of_gateways(part, found, region)
        if found.sites[part].routes is not None:
            yield from _problems_of_routes(part, found, region)
        if found.sites[part].cores is not None:
            yield from _problems_of_cores(part, found, region)


def _problems_beside(part: str, field: str, given: Mapping[str, Any]) -> Iterator[str]:
    """Of what stands beside an IDC, that the API server would not see."""
    where = f"sites.{part}.{field}"
    if "idc" in given:
        yield f"{where}.idc: expected nothing, it is {part}; remove it"
    if given.get("autoscaling") is not None and given.get("replicas") is not None:
        yield f"{where}.replicas: expected nothing beside `autoscaling`, which sets it; remove it"


def _problems_of_gateways(part: str, found: Sites, region: Region) -> Iterator[str]:
    """That the API server would not see, or only the operator."""
    where, given = f"sites.{part}.gateways", found.sites[part].gateways or {}
    if is_witness(part, region):
        yield f"{where}: expected nothing, {part} is the witness and has no gateways; remove it"
        return
    said = {**found.spec, **found.sites[part].spec}.get("gateways", "apart")
    if said != "apart":
        yield f"sites.{part}.spec.gateways: expected apart beside `gateways`, got {said}; remove it"
    yield from _problems_beside(part, "gateways", given)
    try:
        spec = gateways_of(part, found, region)
    except ValidationError as error:
        yield from _words(("sites", part, "gateways"), error, GatewayClusterSpec)
        return
    assert spec is not None
    bounds, room = spec.autoscaling, region.idc(part).gateways
    yield from _problems_of_bounds(where, bounds)
    field, count = ("autoscaling.max", bounds.max) if bounds else ("replicas", spec.replicas)
    if count > room:
        yield (
            f"{where}.{field}: expected at most {room}, the `gateways` of {part} in the region "
            f"file, got {count}; lower it, or raise that"
        )


def _problems_of_bounds(where: str, bounds: Bounds | None) -> Iterator[str]:
    if bounds is not None and bounds.min > bounds.max:
        yield f"{where}.autoscaling.max: expected at least `min` ({bounds.min}), got {bounds.max}"


def _problems_of_routes(part: str, found: Sites, region: Region) -> Iterator[str]:
    where, site = f"sites.{part}.routes", found.sites[part]
    if is_witness(part, region):
        yield f"{where}: expected nothing, {part} is the witness and routes nothing; remove it"
        return
    yield from _problems_of_no_gateways(part, "routes", found)
    yield from _problems_beside(part, "routes", site.routes or {})
    try:
        spec = routes_of(part, found, region)
    except ValidationError as error:
        yield from _words(("sites", part, "routes"), error, RouteClusterSpec)
        return
    assert spec is not None
    yield from _problems_of_bounds(where, spec.autoscaling)


def _problems_of_no_gateways(part: str, field: str, found: Sites) -> Iterator[str]:
    site = found.sites[part]
    if site.gateways is None and {**found.spec, **site.spec}.get("gateways") != "apart":
        yield (
            f"sites.{part}.{field}: expected `gateways` beside it, got none; add `gateways: {{}}`"
        )


def _problems_of_cores(part: str, found: Sites, region: Region) -> Iterator[str]:
    where, site = f"sites.{part}.cores", found.sites[part]
    if is_witness(part, region):
        yield f"{where}: expected nothing, {part} is the witness and has no core; remove it"
        return
    said = {**found.spec, **site.spec}.get("cores", "shared")
    if said != "shared":
        yield f"sites.{part}.spec.cores: expected shared beside `cores`, got {said}; remove it"
    yield from _problems_of_no_gateways(part, "cores", found)
    yield from _problems_beside(part, "cores", site.cores or {})
    try:
        cores_of(part, found)
    except ValidationError as error:
        yield from _words(("sites", part, "cores"), error, ImClusterSpec)
        return
    spec = spec_of(part, found, region)
    assert isinstance(spec, IdcSpec)
    for problem in embedded(spec, region):
        yield f"{where}: {problem}; remove it, or name one"


def _bad(file: str, error: ValidationError) -> BadInput:
    return BadInput("\n".join(f"{file}: {problem}" for problem in _words((), error, Sites)))


def _words(where: tuple[str, ...], error: ValidationError, model: type[Model]) -> Iterator[str]:
    for detail in error.errors():
        each = explain(detail, None, model)
        text = f"{dotted((*where, *each.loc))}: expected {each.expected}, got {each.got}"
        yield f"{text}; {each.do}" if each.do else text


def parts(region: Region) -> list[str]:
    """In the order of starting."""
    witness = [region.spec.witness.name] if region.spec.witness else []
    return witness + [idc.name for idc in region.spec.idcs]


def is_witness(part: str, region: Region) -> bool:
    return region.spec.witness is not None and part == region.spec.witness.name


def kind_of(part: str, region: Region) -> str:
    return WITNESS.name if is_witness(part, region) else IDC.name


def workload(part: str, region: Region) -> str:
    """The name of its StatefulSet; its pod's is that with `-0`."""
    return f"{part}-{kind_of(part, region).lower()}"


def spec_of(part: str, sites: Sites, region: Region) -> IdcSpec | WitnessSpec:
    """Raises pydantic.ValidationError."""
    own: dict[str, Any] = {
        "region": region.metadata.name,
        "certificates": {"secret": f"{part}-certificate", "region_keys": KEYS_SECRET},
        **sites.spec,
        **sites.sites[part].spec,
    }
    if is_witness(part, region):
        return WitnessSpec.model_validate(own)
    if sites.sites[part].gateways is not None:
        own["gateways"] = "apart"
    if sites.sites[part].cores is not None:
        own["cores"] = "shared"
    return IdcSpec.model_validate({**own, "idc": part})


def gateways_of(part: str, sites: Sites, region: Region) -> GatewayClusterSpec | None:
    """As many as the region file says, unless the site says how many. The image is said always:
    without, a new one of the IDC object would come to the gateways before the IDC's own pod has it.
    Raises pydantic.ValidationError."""
    given = sites.sites[part].gateways
    if given is None:
        return None
    own: dict[str, Any] = {"image": spec_of(part, sites, region).image}
    if given.get("autoscaling") is None:
        own["replicas"] = region.idc(part).gateways
    said = {name: value for name, value in given.items() if value is not None}
    return GatewayClusterSpec.model_validate({**own, **said, "idc": part})


def routes_of(part: str, sites: Sites, region: Region) -> RouteClusterSpec | None:
    """The image is said always, as of gateways. Raises pydantic.ValidationError."""
    given = sites.sites[part].routes
    if given is None:
        return None
    said = {name: value for name, value in given.items() if value is not None}
    image = spec_of(part, sites, region).image
    return RouteClusterSpec.model_validate({"image": image, **said, "idc": part})


def cores_of(part: str, sites: Sites) -> ImClusterSpec | None:
    """The image is the IDC object's unless it is said: they get it before the IDC's own pod. Raises
    pydantic.ValidationError."""
    given = sites.sites[part].cores
    if given is None:
        return None
    said = {name: value for name, value in given.items() if value is not None}
    return ImClusterSpec.model_validate({**said, "idc": part})


def objects(part: str, sites: Sites, region: Region, pki: Mapping[str, bytes]) -> list[Object]:
    """In the order of applying them, those of ``beside`` not among them. ``pki``: its files by
    name."""
    namespace = sites.sites[part].namespace
    pair = {CA: "ca.pem", CERTIFICATE: f"{part}.pem", KEY: f"{part}.key"}
    return [
        _secret(f"{part}-certificate", namespace, {key: pki[name] for key, name in pair.items()}),
        _secret(KEYS_SECRET, namespace, {REGION_KEYS: pki[REGION_KEYS]}),
        region_object(region, namespace),
        own_object(part, sites, region),
    ]


def own_object(part: str, sites: Sites, region: Region) -> Object:
    """The IDC or Witness."""
    spec = spec_of(part, sites, region).model_dump(mode="json", exclude_defaults=True)
    return _object(kind_of(part, region), part, sites, spec)


def beside(part: str, sites: Sites, region: Region) -> list[Object]:
    """Its IMCluster, GatewayCluster and RouteCluster, to be applied after the IDC; none of which
    the site says nothing. What it does not say is left to others, such as the autoscaler or
    `kubectl scale`."""
    found = {
        IM_CLUSTER.name: cores_of(part, sites),
        GATEWAY_CLUSTER.name: gateways_of(part, sites, region),
        ROUTE_CLUSTER.name: routes_of(part, sites, region),
    }
    return [
        _object(
            kind, part, sites, spec.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        )
        for kind, spec in found.items()
        if spec is not None
    ]


def _object(kind: str, part: str, sites: Sites, spec: Object) -> Object:
    metadata = {"name": part, "namespace": sites.sites[part].namespace}
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def files(part: str) -> list[str]:
    """What ``objects`` needs of the pki folder."""
    return ["ca.pem", f"{part}.pem", f"{part}.key", REGION_KEYS]


def region_object(region: Region, namespace: str) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": REGION.name,
        "metadata": {"name": region.metadata.name, "namespace": namespace},
        "spec": yaml.safe_load(region_text(region))["spec"],
    }


def mark_of(region: Region) -> str:
    """By which the operator marks the pods that have this region file."""
    name = region.metadata.model_copy(update={"labels": {}})  # a pod is told the name alone
    return hash_of(region_text(region.model_copy(update={"metadata": name})))


def _secret(name: str, namespace: str, data: Mapping[str, bytes]) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: base64.b64encode(value).decode() for key, value in data.items()},
    }
