"""As whom this `imctl` speaks: which certificate of the deployment's pki folder it shows.

The servers judge what that one may call. What needs no server (processes and files of this
machine) is judged here: against mistakes, not against whoever owns them.
"""

from __future__ import annotations

import os
from pathlib import Path

from imcore.errors import BadInput, Code, Refused
from imcore.roles import NAMES, Role, said

VARIABLE = "IMCTL_AS"


def shown(pki: Path) -> Role:
    """--as or $IMCTL_AS, else the highest whose key lies in the folder. Raises BadInput."""
    chosen = os.environ.get(VARIABLE)
    if chosen:
        if chosen not in NAMES:
            raise BadInput(f"${VARIABLE}: expected one of {', '.join(Role)}, got {chosen!r}")
        return Role(chosen)
    there = (role for role in reversed(Role) if (pki / f"{role}.key").exists())
    return next(there, Role.ADMIN)  # with none at all, the error names the highest


def check(pki: Path) -> None:
    """Raises BadInput when a role is named whose key is not there."""
    key = pki / f"{shown(pki)}.key"
    if os.environ.get(VARIABLE) and not key.exists():
        raise BadInput(f"{key}: expected the key of the role; create it with `imctl pki init FILE`")


def demand(pki: Path, needed: Role, what: str) -> None:
    """Raises Refused. ``what``: the subject of the sentence."""
    role = shown(pki)
    if not role.covers(needed):
        raise Refused(Code.FORBIDDEN, said(role, what, f"needs the role {needed}"))
