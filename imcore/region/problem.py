"""One thing that is wrong in a region file."""

from __future__ import annotations

from typing import NamedTuple

Loc = tuple[str | int, ...]


class Problem(NamedTuple):
    loc: Loc  # ("spec", "idcs", 1, "name")
    expected: str
    got: str
    do: str = ""
    line: int = 0  # 0: where loc is


def dotted(loc: Loc) -> str:
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text
