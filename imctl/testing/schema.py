"""What `-o json` prints, against docs/output.schema.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

FILE = Path(__file__).parents[2] / "docs" / "output.schema.json"


@cache
def _published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def names() -> list[str]:
    return list(_published()["$defs"])


def check(document: object, name: str) -> None:
    """Raises jsonschema.ValidationError."""
    jsonschema.validate(document, {**_published(), "$ref": f"#/$defs/{name}"})


def check_output(arguments: tuple[object, ...], out: str) -> None:
    """If the command line asks for JSON, and printed some. Raises jsonschema.ValidationError."""
    if "json" in arguments and out and (name := of(arguments)):
        check(json.loads(out), name)


def of(arguments: tuple[object, ...]) -> str:
    """The schema of what this command line prints; empty: there is none."""
    words = [str(word) for word in arguments]
    if words[0] == "op":
        return {"list": "operations", "show": "operation"}.get(words[1], "change")
    if words[0] == "audit":
        return "_".join(["audit", *(word for word in words[1:2] if word in ("verify", "rules"))])
    if words[:2] == ["drill", "simulate"]:
        return "simulation"
    if words[0] == "scale":
        return "plan" if "--dry-run" in words else "rollout"
    return _COMMANDS.get(words[0], "")


_COMMANDS = {
    "status": "status", "plan": "plan", "diff": "changes", "deploy": "rollout",
    "rollout": "rollout", "archive": "archive",
    **dict.fromkeys(
        ("cordon", "uncordon", "drain", "undrain", "switchover", "failover", "failback", "retire"),
        "change",
    ),
}  # fmt: skip
