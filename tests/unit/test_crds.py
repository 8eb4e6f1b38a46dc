"""The CRDs: as files they are what the models say, and structural as Kubernetes demands it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imcore.region.load import load_region
from imctl.api.crd import definition
from imctl.api.kinds import KINDS, REGION, Kind
from imctl.api.rules import Rules
from tools import gencrds

ROOT = Path(__file__).parents[2]
ALL = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def schema_of(kind: Kind) -> dict[str, Any]:
    (version,) = definition(kind)["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return schema


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, each in node.get("properties", {}).items():
        yield from nodes(each, f"{path}.{name}" if path else name)
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from nodes(node["additionalProperties"], f"{path}{{}}")


@pytest.mark.parametrize("path", gencrds.files(), ids=lambda path: path.name)
def test_the_files_are_generated(path: Path) -> None:
    assert path.read_text() == gencrds.files()[path], "run `make docs`"


@ALL
def test_every_node_is_structural(kind: Kind) -> None:
    allowed = {
        "type", "description", "format", "enum", "pattern", "default", "properties", "required",
        "items", "additionalProperties", "minimum", "maximum", "exclusiveMinimum",
        "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties",
        "maxProperties", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
        "x-kubernetes-validations",
    }  # fmt: skip
    for path, node in nodes(schema_of(kind)):
        assert set(node) <= allowed, (path, set(node) - allowed)
        assert isinstance(node["type"], str), path
        if node["type"] == "array":
            assert "items" in node, path
        if node["type"] == "object" and path != "metadata":
            assert ("properties" in node) != ("additionalProperties" in node), path
        for bound in ("exclusiveMinimum", "exclusiveMaximum"):
            assert node.get(bound, True) is True, path


@ALL
def test_every_field_is_explained(kind: Kind) -> None:
    for path, node in nodes(schema_of(kind)):
        if path and path not in ("apiVersion", "kind", "metadata") and path[-1] not in "]}":
            assert node.get("description"), path


@ALL
def test_every_rule_has_its_place(kind: Kind) -> None:
    places = {path for path, _ in nodes(schema_of(kind))}
    rules: Rules = kind.rules
    assert set(rules) <= places


@ALL
def test_defaults_are_accepted_by_their_own_schema(kind: Kind) -> None:
    for path, node in nodes(schema_of(kind)):
        for name, field in node.get("properties", {}).items():
            if "default" in field:
                jsonschema.Draft4Validator(field).validate(field["default"])
                assert name not in node.get("required", ()), (path, name)


@pytest.mark.parametrize("file", sorted((ROOT / "regions").glob("*.yaml")), ids=lambda f: f.name)
def test_a_region_file_is_a_region(file: Path) -> None:
    jsonschema.Draft4Validator(schema_of(REGION)).validate(yaml.safe_load(file.read_text()))


def test_what_the_api_server_fills_in_is_what_the_model_takes_for_unset(tmp_path: Path) -> None:
    file = ROOT / "regions" / "two-idc.yaml"
    document = yaml.safe_load(file.read_text())
    fill(document, schema_of(REGION))
    filled = tmp_path / "filled.yaml"
    filled.write_text(yaml.safe_dump(document))
    assert load_region(filled) == load_region(file)


def fill(value: Any, schema: dict[str, Any]) -> None:
    """Defaults, as an API server does it."""
    if isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if name not in value and "default" in field:
                default = field["default"]
                value[name] = dict(default) if isinstance(default, dict) else default
            if name in value:
                fill(value[name], field)
    elif isinstance(value, list):
        for each in value:
            fill(each, schema["items"])


def test_an_engine_is_chosen_by_name_or_not_at_all() -> None:
    engines = schema_of(REGION)["properties"]["spec"]["properties"]["idcs"]["items"]["properties"][
        "engines"
    ]
    judge = jsonschema.Draft4Validator(engines)
    assert judge.is_valid({})
    assert judge.is_valid({"kv": {"tikv": {"pd": ["pd:2379"]}}})
    assert not judge.is_valid({"kv": {}})
    assert not judge.is_valid({"kv": "embedded"})
