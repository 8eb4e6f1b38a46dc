"""Java's properties files, as far as Kafka's programs use them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping


def text(found: Mapping[str, str]) -> str:
    return "".join(f"{_key(key)}={_value(value)}\n" for key, value in found.items())


def _key(key: str) -> str:
    return re.sub(r"([\s=:#!])", r"\\\1", _escaped(key))


def _value(value: str) -> str:
    """Spaces before it would be dropped."""
    return re.sub(r"^(\s)", r"\\\1", _escaped(value))


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace("\n", "\\n")


def parsed(source: str) -> dict[str, str]:
    """A properties file as Java reads it."""
    found = {}
    for line in _logical_lines(source):
        match = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL)
        assert match is not None  # it matches anything
        found[_unescaped(match[1])] = _unescaped(match[2])
    return found


def _logical_lines(source: str) -> Iterator[str]:
    whole = ""
    for line in source.splitlines():
        line = line.lstrip()
        if not whole and (not line or line[0] in "#!"):
            continue
        whole += line
        if (len(whole) - len(whole.rstrip("\\"))) % 2:
            whole = whole[:-1]  # goes on in the next line
            continue
        yield whole
        whole = ""
    if whole:
        yield whole


def _unescaped(part: str) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}.get(match[2], match[2])

    return re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", one, part, flags=re.DOTALL)
