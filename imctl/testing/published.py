"""Schemas that other operators publish for their kinds, and what they say of objects of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml

Schemas = dict[str, Any]  # by apiVersion and kind


def strict(schema: Any) -> Any:
    """An API server drops fields that it does not know; here they are errors."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    known = isinstance(found.get("properties"), dict) and found.get("type") == "object"
    if known and not found.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def schemas(folder: Path) -> Schemas:
    """Of the CustomResourceDefinitions that lie there."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # megabytes of them
    found = {}
    for file in folder.glob("*.yaml"):
        spec = yaml.load(file.read_text(), loader)["spec"]  # noqa: S506 - both loaders are safe
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{spec['group']}/{version['name']} {spec['names']['kind']}"] = schema
    return found


def check(made: dict[str, Any], of: Schemas) -> None:
    """Raises jsonschema.ValidationError. Rules between fields (CEL) only an API server judges."""
    schema = of[f"{made['apiVersion']} {made['kind']}"]
    jsonschema.Draft202012Validator(schema).validate(made)
