"""How many instances of a role an IDC runs: which roles can be scaled, and the changed region file.
Pure; a scale is a deploy of a file that differs in this field alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from imcore.errors import BadInput

FIELDS = {"gateway": "gateways", "ipconf": "ipconfs"}  # of an IDC in the region file
# On the local target these share the one process of their IDC, which has no second copy.
ONE_PROCESS = ("im", "route", "state", "store", "mirror", "controller", "registry")


def counts_of(words: Sequence[str]) -> dict[str, int]:
    """``gateway=3``: by role. Raises BadInput, also for a role that cannot be scaled."""
    found: dict[str, int] = {}
    for word in words:
        role, given, count = word.partition("=")
        if role in ONE_PROCESS:
            raise BadInput(
                f"{role} cannot be scaled: only gateways and ipconfs can have several instances "
                "here; the other roles share the IDC's one process"
            )
        if role not in FIELDS:
            raise BadInput(f"expected a role that can be scaled ({_names()}), got {role!r}")
        if not given or not count.isascii() or not count.isdigit():
            raise BadInput(f"expected {role}=COUNT, got {word!r}")
        if role in found:
            raise BadInput(f"expected each role once, got {role} twice")
        found[role] = int(count)
    return found


def scaled(document: Mapping[str, Any], idc: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """The region file's content with these counts. Raises BadInput for an IDC that it has not."""
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    rows = {row["name"]: row for row in changed["spec"]["idcs"]}
    if idc not in rows:
        raise BadInput(f"expected one of {', '.join(rows)}, got {idc!r}")
    for role, count in counts.items():
        rows[idc][FIELDS[role]] = count
    return changed


def _names() -> str:
    return ", ".join(FIELDS)
