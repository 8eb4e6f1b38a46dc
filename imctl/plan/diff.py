"""The differences of two region files, by object and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from imcore.region.model import Region

Path = tuple[str, ...]  # ("spec", "idcs", "fra", "gateways"): an object of a list by its name

# Lists of objects that have a name; all other lists are one value.
_NAMED = {("spec", "idcs"), ("spec", "geo", "shards")}


class _Absent:
    """No value, where null is one."""


ABSENT = _Absent()


class Difference(NamedTuple):
    """``before`` or ``after`` is ABSENT where the file has no such object."""

    path: Path
    before: Any
    after: Any

    @property
    def field(self) -> str:
        """As in the messages of `imctl validate`, with names in place of numbers."""
        text = ""
        parent: Path = ()
        for step in self.path:
            text += f"[{step}]" if parent in _NAMED else f".{step}" if text else step
            parent = (*parent, step)
        return text


def differences(before: Region, after: Region) -> list[Difference]:
    return list(walk((), before.model_dump(mode="json"), after.model_dump(mode="json")))


def shown(value: Any) -> str:
    """A value for a table."""
    if value is ABSENT or value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value for JSON."""
    return None if value is ABSENT else value


def walk(path: Path, before: Any, after: Any) -> Iterator[Difference]:
    """Of two values at this path."""
    if path in _NAMED:
        yield from _objects(path, _by_name(before), _by_name(after))
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            yield from walk((*path, key), before.get(key, ABSENT), after.get(key, ABSENT))
    elif before is not after and before != after:
        yield Difference(path, before, after)


def _objects(
    path: Path, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Difference]:
    for name in dict.fromkeys([*before, *after]):
        if name in before and name in after:
            yield from walk((*path, name), before[name], after[name])
        else:
            old = "there" if name in before else ABSENT
            yield Difference((*path, name), old, "there" if name in after else ABSENT)
    if set(before) == set(after) and list(before) != list(after):
        yield Difference(path, list(before), list(after))


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in rows}
