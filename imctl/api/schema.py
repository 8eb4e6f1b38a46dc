"""A typed model as a structural schema of Kubernetes: nothing referred to, one type a node.

Kubernetes takes less than JSON Schema: no `$ref`, no `null` beside a type, no names of a map by
pattern, bounds that are exclusive by a flag, and defaults that are filled in level by level.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from imcore.region.model import Choice
from imctl.api.rules import Rule, Rules

Schema = dict[str, Any]
_KEPT = (
    "type", "description", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
KEYED = {"spec.idcs": "name", "spec.geo.shards": "name", "status.conditions": "type"}
_CHOICES = {each.__name__ for each in Choice.__subclasses__()}


def structural(model: type[BaseModel], path: str, rules: Rules) -> Schema:
    """Of the object at ``path`` ("spec"), with the rules that belong to it and below."""
    root = model.model_json_schema()
    return _Maker(root.get("$defs", {}), rules).make(root, path)


class _Maker:
    def __init__(self, definitions: Schema, rules: Rules) -> None:
        self._definitions = definitions
        self._rules = rules

    def make(self, node: Schema, path: str) -> Schema:
        node, choice = self._plain(node)
        made = {key: node[key] for key in _KEPT if key in node}
        if "description" in made:
            made["description"] = _sentence(made["description"])
        if "const" in node:
            made["enum"] = [node["const"]]
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if exclusive in node:
                made |= {bound: node[exclusive], exclusive: True}
        if made["type"] == "integer":
            made["format"] = "int64"
        rules = list(self._rules.get(path, ()))
        if made["type"] == "object":
            self._object(made, node, path, rules)
        elif made["type"] == "array":
            inner = node["prefixItems"][0] if "prefixItems" in node else node["items"]
            made["items"] = self.make(inner, f"{path}[]")
            if path in KEYED:
                made |= {
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": [KEYED[path]],
                }
        if choice:  # `{}` would be no choice; unset is `embedded`
            made |= {"minProperties": 1, "maxProperties": 1}
        if rules:
            made["x-kubernetes-validations"] = [
                {"rule": rule.cel, "message": rule.message} for rule in rules
            ]
        return made

    def _object(self, made: Schema, node: Schema, path: str, rules: list[Rule]) -> None:
        map_of = _values(node)
        if "properties" in node or map_of is None:
            made["properties"] = {
                name: self._field(each, f"{path}.{name}")
                for name, each in node.get("properties", {}).items()
            }
            if required := node.get("required"):
                made["required"] = required
            return
        pattern, values = map_of
        made["additionalProperties"] = self.make(values, f"{path}{{}}")
        if pattern:
            # Only what is bounded has a price that an API server can reckon.
            made.setdefault("maxProperties", 64)
            rules.append(Rule(f"self.all(k, k.matches('{pattern}'))", f"expected names {pattern}"))

    def _field(self, node: Schema, path: str) -> Schema:
        made = self.make(node, path)
        default = node.get("default")
        if made["type"] == "object" and "properties" in made:
            # Its own fields have their defaults, once it is there.
            if default is not None and "minProperties" not in made:
                made["default"] = {}
        elif default not in (None, [], {}):
            made["default"] = default
        return made

    def _plain(self, node: Schema) -> tuple[Schema, bool]:
        """Without `$ref` and null; and whether it is a choice of engines."""
        choice = False
        if "anyOf" in node:
            (only,) = [each for each in node["anyOf"] if each.get("type") != "null"]
            node = only | {key: node[key] for key in ("description",) if key in node}
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            own = {key: value for key, value in node.items() if key != "$ref"}
            node, choice = self._definitions[name] | own, name in _CHOICES
        return node, choice


def _values(node: Schema) -> tuple[str, Schema] | None:
    """(pattern of the names, schema of the values) of a map; None for an object with fields."""
    if "patternProperties" in node:
        ((pattern, values),) = node["patternProperties"].items()
        return pattern, values
    values = node.get("additionalProperties")
    return ("", values) if isinstance(values, dict) else None


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text if text[1:2].isupper() else f"{text[:1].upper()}{text[1:]}"
