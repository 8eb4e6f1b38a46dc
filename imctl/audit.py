"""The audit chain of a deployment's folder: what `imctl` decided and what it broke on purpose.

Refusals too. The controllers' decisions stand in chains of their own, beside their logs.
"""

from __future__ import annotations

import os
import pwd
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from imcore import auditfile
from imcore.auditfile import FILE, LOGGER
from imctl import roles
from imctl.target.base import Target

__all__ = ["FILE", "LOGGER", "WRITER", "fault", "kept"]

WRITER = "imctl"


def kept(target: Target) -> AbstractContextManager[None]:
    """Events of this block go where those of all earlier commands are."""
    return auditfile.kept(target.audit_file(), WRITER, _who(target.pki))


def fault(target: Target, at_ms: int, unit: str, outcome: str, sentence: str) -> None:
    """``outcome``: "done", "refused", "not done" (no answer), "unknown"."""
    row = {"at_ms": at_ms, "fault": unit, "outcome": outcome, "sentence": sentence}
    auditfile.note(target.audit_file(), WRITER, row | _who(target.pki))


def _who(pki: Path) -> dict[str, Any]:
    """Whose process this is (not from the environment, which says what it is told to), and which
    certificate it shows."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return {"user": user, "certificate": str(roles.shown(pki))}
