"""What `--override` takes: the id of a safety rule."""

from __future__ import annotations

from imcore.errors import BadInput
from services.control.rules import RULES, no_rule


def known_rule(name: str | None) -> str | None:
    """Raises BadInput."""
    if name is not None and name not in RULES:
        raise BadInput(f"--override: {no_rule(name)}")
    return name
