"""Where each part of a region runs on Kubernetes, and the objects that the operator is given. Pure.

sites:
  fra: {context: prod-fra, namespace: im}
  dub: {context: prod-dub, namespace: im, spec: {storage: {size: 100Gi}}}
  witness: {context: prod-lon, namespace: im}
spec: {image: "registry/imctl:1", service: LoadBalancer}
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import Field, ValidationError

from imcore.errors import BadInput
from imcore.pki import REGION_KEYS
from imcore.region.explain import explain
from imcore.region.model import Model, Name, Region
from imcore.region.problem import dotted
from imctl.api.kinds import API_VERSION, IDC, REGION, WITNESS
from imctl.api.model import IdcSpec, ObjectName, WitnessSpec
from imctl.reconcile.objects import CA, CERTIFICATE, KEY, hash_of, region_text
from imctl.reconcile.observed import Object

KEYS_SECRET = "region-keys"  # noqa: S105 - its name


class Site(Model):
    """``context``: of the kubeconfig; empty: the current one. ``spec``: fields of this IDC or
    Witness object, over those of all."""

    namespace: ObjectName
    context: str = ""
    spec: dict[str, Any] = Field(default_factory=dict)


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
        raise _bad(file, (), error) from error
    wanted, given = set(parts(region)), set(found.sites)
    if wanted != given:
        raise BadInput(
            f"{file}: sites: expected {', '.join(sorted(wanted))}, got {', '.join(sorted(given))}"
        )
    for part in found.sites:
        try:
            spec_of(part, found, region)
        except ValidationError as error:
            raise _bad(file, ("sites", part, "spec"), error) from error
    return found


def _bad(file: str, where: tuple[str, ...], error: ValidationError) -> BadInput:
    problems = [explain(detail, None) for detail in error.errors()]
    return BadInput(
        "\n".join(
            f"{file}: {dotted((*where, *each.loc))}: expected {each.expected}, got {each.got}"
            for each in problems
        )
    )


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
    return IdcSpec.model_validate(own | {"idc": part})


def objects(part: str, sites: Sites, region: Region, pki: Mapping[str, bytes]) -> list[Object]:
    """In the order of applying them. ``pki``: its files by name."""
    namespace = sites.sites[part].namespace
    pair = {CA: "ca.pem", CERTIFICATE: f"{part}.pem", KEY: f"{part}.key"}
    spec = spec_of(part, sites, region).model_dump(mode="json", exclude_defaults=True)
    return [
        _secret(f"{part}-certificate", namespace, {key: pki[name] for key, name in pair.items()}),
        _secret(KEYS_SECRET, namespace, {REGION_KEYS: pki[REGION_KEYS]}),
        region_object(region, namespace),
        {
            "apiVersion": API_VERSION,
            "kind": kind_of(part, region),
            "metadata": {"name": part, "namespace": namespace},
            "spec": spec,
        },
    ]


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
