"""The CustomResourceDefinition of each kind, and the page that documents them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from imctl.api.kinds import (
    CATEGORY,
    GATEWAY_CLUSTER,
    GROUP,
    IDC,
    IM_CLUSTER,
    KINDS,
    ROUTE_CLUSTER,
    VERSION,
    WITNESS,
    Column,
    Kind,
)
from imctl.api.schema import Schema, structural

HEAD = """\
# The kinds of `imctl.dev/v1alpha1`

Generated from the typed models by `make docs`; not edited. [operator.md](operator.md) says what the
operator makes of them. Fields are named as in the region file, which is itself a `Region`.
`kubectl explain` shows the same texts; `kubectl get im` lists all of them.
"""

_SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}


def definition(kind: Kind) -> Schema:
    """As it is applied."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.crd},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                # A name may be given once; an empty list would be somebody's field all the same.
                **({"shortNames": [kind.short]} if kind.short != kind.name.lower() else {}),
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}, **({"scale": _SCALE} if kind.scales else {})},
                    "additionalPrinterColumns": [_column(column) for column in kind.columns],
                    "schema": {"openAPIV3Schema": _whole(kind)},
                }
            ],
        },
    }


def _column(column: Column) -> dict[str, Any]:
    made = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return made | ({"priority": 1} if column.wide else {})


def _whole(kind: Kind) -> Schema:
    whole: Schema = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(kind.spec, "spec", kind.rules),
            "status": structural(kind.status, "status", {}),
        },
    }
    if own := kind.rules.get(""):
        whole["x-kubernetes-validations"] = [
            {"rule": rule.cel, "message": rule.message} for rule in own
        ]
    return whole


def values_schema() -> Schema:
    """Of the values of the chart of one IDC or witness: it fills in the region."""
    spec = _closed(structural(IDC.spec, "spec", {}))
    del spec["properties"]["region"]
    spec["required"] = ["image", "certificates"]
    kinds = [IDC.name, WITNESS.name]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "required": ["regionFile", "kind", "spec"],
        "properties": {
            "global": {"type": "object"},
            "regionFile": {"type": "string", "description": "A region file, word for word"},
            "region": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "create": {
                        "type": "boolean",
                        "description": "Make the Region; false: another release of this namespace "
                        "has",
                    },
                },
            },
            "kind": {"enum": kinds, "description": "Which of them this is"},
            "spec": spec,
            "gateways": _beside(GATEWAY_CLUSTER),
            "routes": _beside(ROUTE_CLUSTER),
            "cores": _beside(IM_CLUSTER),
            "monitoring": _monitoring(),
        },
    }


def _beside(kind: Kind) -> Schema:
    """Of one that stands beside this IDC."""
    spec = _closed(structural(kind.spec, "spec", {}))
    del spec["properties"]["idc"], spec["required"]
    return spec | {"description": f"A {kind.name} with these fields; empty: none"}


def _monitoring() -> Schema:
    strings = {"type": "object", "additionalProperties": {"type": "string"}}
    fields = {
        "enabled": {"type": "boolean", "description": "Make a PodMonitor"},
        "certificate": {
            "type": "string",
            "description": "A Secret with ca.crt, tls.crt, tls.key: a viewer's certificate",
        },
        "labels": {**strings, "description": "By which a Prometheus finds the PodMonitor"},
    }
    monitor = {"type": "object", "additionalProperties": False, "properties": fields}
    made = {"type": "object", "properties": {"podMonitor": monitor}}
    return {**made, "additionalProperties": False}


def _closed(node: Schema) -> Schema:
    """As a schema for people's files: a field that does not exist is a mistake."""
    if "properties" in node:
        inner = {name: _closed(field) for name, field in node["properties"].items()}
        return node | {"properties": inner, "additionalProperties": False}
    return node


# ------------------------------------------------------------------------------- the page


def page() -> str:
    return "\n".join([HEAD, *(line for kind in KINDS for line in _section(kind))])


def _section(kind: Kind) -> Iterator[str]:
    whole = _whole(kind)
    names = ", ".join(f"`{name}`" for name in dict.fromkeys((kind.plural, kind.short)))
    yield f"## {kind.name}\n\n{kind.description} As {names} for `kubectl`.\n"
    for part in ("spec", "status"):
        yield "| field | type | default | meaning |\n| --- | --- | --- | --- |"
        yield from _rows(whole["properties"][part], part)
        yield ""
    rules = list(_rules(whole, ""))
    if rules:
        yield "Rules between fields, judged when it is applied:\n"
        yield from (f"- `{path or kind.name}`: {message}" for path, message in rules)
        yield ""


def _rows(node: Schema, path: str) -> Iterator[str]:
    for name, field in node.get("properties", {}).items():
        below, inner = _inside(field, f"{path}.{name}")
        default = field.get("default")
        shown = "" if default is None or default == {} else f"`{_text(default)}`"
        if name in node.get("required", ()):
            shown = "required"
        meaning = field.get("description", "").replace("|", "\\|")
        yield f"| `{path}.{name}` | {_type(field)} | {shown} | {meaning} |"
        yield from _rows(inner, below)


def _inside(field: Schema, path: str) -> tuple[str, Schema]:
    if field["type"] == "array":
        return f"{path}[]", field["items"]
    return path, field


def _type(field: Schema) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}"
    kind = str(field["type"])
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None:
        kind += f" {'>' if field.get('exclusiveMinimum') else '≥'} {low:g}"
    if high is not None:
        kind += f"{',' if low is not None else ''} {'<' if field.get('exclusiveMaximum') else '≤'} "
        kind += f"{high:g}"
    return kind


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _rules(node: Schema, path: str) -> Iterator[tuple[str, str]]:
    for rule in node.get("x-kubernetes-validations", ()):
        yield path, rule["message"]
    for name, field in node.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}" if path else name)
    if "items" in node:
        yield from _rules(node["items"], f"{path}[]")
