"""What pydantic refused, in the words of somebody who writes a region file."""

from __future__ import annotations

import difflib
import types
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from imcore.region.model import (
    AbsolutePath,
    Bucket,
    Country,
    HostPort,
    KeyPrefix,
    Name,
    Region,
    S3Endpoint,
    TopicPrefix,
)
from imcore.region.problem import Loc, Problem

_NAME = 'a name (lowercase letters, digits and "-", a letter first, at most 31 characters)'


def _pattern(annotated: Any) -> str:
    return str(get_args(annotated)[1].pattern)


_PATTERNS = {
    _pattern(Name): _NAME,
    _pattern(HostPort): "HOST:PORT",
    _pattern(Country): "a country's two letters, such as DE",
    _pattern(AbsolutePath): "a file's path from / on",
    _pattern(S3Endpoint): "https://HOST:PORT and nothing behind it",
    _pattern(Bucket): 'a bucket (3 to 63 lowercase letters, digits, "-" and ".")',
    _pattern(KeyPrefix): 'a key prefix (letters, digits, ".", "_", "-" and "/")',
    _pattern(TopicPrefix): 'a topic prefix (letters, digits, "." and "-", at most 100 characters)',
}
_BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
_TYPES = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
}
_PLAIN = {
    "tag:yaml.org,2002:bool": "the boolean",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:int": "the number",
    "tag:yaml.org,2002:float": "the number",
    "tag:yaml.org,2002:null": "nothing",
}


def explain(
    detail: ErrorDetails, node: yaml.Node | None, model: type[BaseModel] = Region
) -> Problem:
    """``node``: what the file has at the error's place; ``model``: what refused it."""
    loc, kind = tuple(detail["loc"]), detail["type"]
    if loc and loc[-1] == "[key]":
        return Problem(loc[:-1], _NAME, f'the key "{loc[-2]}"')
    if kind == "missing":
        return Problem(loc, "a value", "none", f"add `{loc[-1]}:`")
    if kind == "extra_forbidden":
        return _unknown_field(loc, model)
    if kind == "string_type" and (trap := _unquoted(loc, node)):
        return trap
    return Problem(loc, _expected(detail), _got(detail["input"]))


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _TYPES:
        return _TYPES[kind]
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"text like {context['pattern']}")
    if kind in ("literal_error", "enum"):
        return str(context["expected"])
    for bound, words in _BOUNDS.items():
        if bound in context:
            return f"{words} {context[bound]:g}"
    if "min_length" in context:
        return f"at least {context['min_length']} of them"
    if "max_length" in context:
        return f"at most {context['max_length']} of them"
    if "error" in context:
        return f"a valid value ({context['error']})"
    return detail["msg"].removeprefix("Input should be ")


def _got(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing"
    if isinstance(value, bool):  # as in the file
        return str(value).lower()
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unquoted(loc: Loc, node: yaml.Node | None) -> Problem | None:
    """Text that YAML takes for something else when it has no quotes: NO is Norway only in them."""
    if not isinstance(node, yaml.ScalarNode) or node.style or node.tag not in _PLAIN:
        return None
    if node.tag.endswith(":null"):
        return Problem(loc, "text", "nothing")
    meaning = _PLAIN[node.tag]
    if node.tag.endswith(":bool"):
        meaning += " true" if node.value.lower() in ("y", "yes", "on", "true") else " false"
    return Problem(
        loc,
        "text",
        f"{node.value}, which YAML reads as {meaning}",
        f'put it in quotes: "{node.value}"',
    )


def _unknown_field(loc: Loc, model: type[BaseModel]) -> Problem:
    names = sorted(_fields(loc[:-1], model))
    close = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.6)
    do = f"did you mean `{close[0]}`?" if close else "remove it"
    return Problem(loc, f"one of {', '.join(names)}", f"the unknown field `{loc[-1]}`", do)


def _fields(loc: Loc, model: type[BaseModel]) -> list[str]:
    """The names of the fields of the model at loc."""
    kind: Any = model
    for step in loc:
        kind = _member(kind, step)
    return list(kind.model_fields) if _is_model(kind) else []


def _member(kind: Any, step: str | int) -> Any:
    if _is_model(kind):
        field = kind.model_fields.get(step)
        return _without_none(field.annotation) if field else None
    arguments = get_args(kind)
    if get_origin(kind) is dict:
        return arguments[1]
    if get_origin(kind) is list:
        return arguments[0]
    return None


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
