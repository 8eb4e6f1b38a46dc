"""Region file -> Region, with every error on the line of the file where it stands.

Three passes: YAML nodes (syntax, duplicate keys), the typed model (shape), the rules between
fields (``imcore.region.rules``). All that can be judged is reported at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from imcore.errors import BadInput
from imcore.region import rules
from imcore.region.explain import explain
from imcore.region.model import Region
from imcore.region.problem import Loc, Problem, dotted

FILE_BYTES_MAX = 1 << 20
NESTING_MAX = 50
_DIGITS_MAX = 100


class Loaded(NamedTuple):
    region: Region | None  # None when there are problems
    problems: list[str]  # "FILE:LINE: field: expected ..., got ...; do ...", by line


def load_region(path: Path) -> Region:
    """Raises BadInput with one line for each problem."""
    loaded = check_region(path)
    if loaded.region is None:
        raise BadInput("\n".join(loaded.problems))
    return loaded.region


def check_region(path: Path) -> Loaded:
    """Never raises for what stands in the file; BadInput when it cannot be read at all."""
    return check_text(_read(path), str(path))


def check_text(text: str, file: str) -> Loaded:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is None:
            return Loaded(None, [f"{file}:1: expected a region file, got an empty one"])
        problems = _tree_problems(root)
        data = _Loader("").construct_document(root)
    except yaml.MarkedYAMLError as error:
        return Loaded(None, [_syntax(file, error)])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return Loaded(None, [f"{file}:1: expected YAML, got {_first_line(error)}"])
    region, found = _judge(data, root)
    problems += found
    ordered = sorted((_line(root, p), _sentence(p)) for p in problems)
    lines = list(dict.fromkeys(f"{file}:{line}: {sentence}" for line, sentence in ordered))
    return Loaded(None if lines else region, lines)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise BadInput(f"{path}: expected a region file, got more than 1 MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            f"{path}: expected a region file, got {error.strerror}; `ls regions/` shows examples"
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: expected UTF-8 text, got other bytes") from error


def _judge(data: Any, root: yaml.Node) -> tuple[Region | None, list[Problem]]:
    try:
        region = Region.model_validate(data)
    except ValidationError as error:
        return None, _shape_problems(error, data, root)
    return region, rules.check(region)


def _shape_problems(error: ValidationError, data: Any, root: yaml.Node) -> list[Problem]:
    """What the model refused, and the broken rules that do not depend on it: those of the file as
    it would be without the refused fields, if that is a region at all."""
    problems = [explain(detail, _node_at(root, detail["loc"])) for detail in error.errors()]
    for problem in problems:
        _prune(data, problem.loc)
    try:
        rest = Region.model_validate(data)
    except ValidationError:
        return problems
    refused = [_container(problem.loc) for problem in problems]
    return problems + [
        found
        for found in rules.check(rest)
        if not any(
            found.loc[: len(loc)] == loc or loc[: len(found.loc)] == found.loc for loc in refused
        )
    ]


def _container(loc: Loc) -> Loc:
    """The innermost field (not a list's item) that loc lies in: removing it shifts no index."""
    while loc and not isinstance(loc[-1], str):
        loc = loc[:-1]
    return loc


def _prune(data: Any, loc: Loc) -> None:
    path = _container(loc)
    for step in path[:-1]:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return
    if path and isinstance(data, dict):
        data.pop(path[-1], None)


# ------------------------------------------------------------------------------ YAML nodes


class _Loader(yaml.SafeLoader):
    """Names the line of a value that its tag does not fit, for which PyYAML has all kinds of
    errors without one; and takes no number that could not be printed."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and len(node.value) > _DIGITS_MAX:
            raise _unreadable(node, f"a number of more than {_DIGITS_MAX} digits")
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            raise _unreadable(node, f"this is no {kind} that YAML knows") from error


def _unreadable(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _tree_problems(root: yaml.Node) -> list[Problem]:
    """Duplicate keys, of which YAML would silently take the last; anchors, which could make a
    small file huge; nesting without end."""
    problems: list[Problem] = []
    seen: set[int] = set()
    stack: list[tuple[yaml.Node, Loc]] = [(root, ())]
    while stack:
        node, loc = stack.pop()
        if isinstance(node, yaml.CollectionNode):
            if id(node) in seen:
                raise ValueError(f"an alias at {dotted(loc)}: write the value out")
            seen.add(id(node))
            if len(loc) > NESTING_MAX:
                raise ValueError(f"more than {NESTING_MAX} levels")
        if isinstance(node, yaml.MappingNode):
            problems += _duplicates(node, loc)
            stack += [(value, (*loc, _key(key))) for key, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            stack += [(item, (*loc, index)) for index, item in enumerate(node.value)]
    return problems


def _duplicates(node: yaml.MappingNode, loc: Loc) -> list[Problem]:
    first: dict[str, int] = {}
    problems = []
    for key, _ in node.value:
        name, line = _key(key), key.start_mark.line + 1
        if name in first:
            problems.append(
                Problem(
                    (*loc, name),
                    "one value",
                    f"a second one (the first is on line {first[name]})",
                    "remove one of them",
                    line=line,
                )
            )
        first.setdefault(name, line)
    return problems


def _key(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else "?"


def _node_at(root: yaml.Node, loc: Loc) -> yaml.Node | None:
    """The value node at exactly loc, or None when the file has none there."""
    node: yaml.Node = root
    for step in loc:
        child = _child(node, step)
        if child is None:
            return None
        node = child[1]
    return node


def _child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    """(line, value node) of a mapping's key or a sequence's item."""
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if _key(key) == step:
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line + 1, item
    return None


def _line(root: yaml.Node, problem: Problem) -> int:
    """The line of the field, or of the nearest thing around it that the file has."""
    if problem.line:
        return problem.line
    line, node = root.start_mark.line + 1, root
    for step in problem.loc:
        child = _child(node, step)
        if child is None:
            break
        line, node = child
        if isinstance(node, yaml.ScalarNode):
            line = node.start_mark.line + 1
    return line


def _sentence(problem: Problem) -> str:
    field = dotted(problem.loc) or "the file"
    # Who mistakes the field for the password itself is not to find it in a log.
    secret = bool(problem.loc) and problem.loc[-1] in ("password_file", "credentials_file")
    got = "something else, not shown here" if secret else problem.got
    text = f"{field}: expected {problem.expected}, got {got}"
    return f"{text}; {problem.do}" if problem.do else text


def _syntax(file: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if error.problem is not None and "'\\t'" in error.problem:
        return f"{file}:{line}: expected YAML, got a tab; put spaces in its place"
    return f"{file}:{line}: expected YAML, got an error: {error.problem or _first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
