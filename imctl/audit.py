"""The audit chain of a deployment's folder: what `imctl` decided and what it broke on purpose.

Refusals too. The controllers' decisions stand in chains of their own, beside their logs.

Each machine from which a deployment is steered has a folder, and so a chain, of its own. Its writer
is named by the machine, so that none takes the other's anchor in the registers for its own.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from imcore import auditfile
from imcore.audit import parse
from imcore.auditfile import FILE, LOGGER
from imctl import roles
from imctl.reach import Reach

__all__ = ["FILE", "LOGGER", "fault", "kept", "own_writer", "writer_of"]

BEFORE = "imctl"  # the writer of chains from before machines had names
MACHINE = Path("/etc/machine-id")


def own_writer() -> str:
    """Of a chain that this machine begins: ``imctl@HOST-HASH``."""
    host = re.sub(r"[^a-z0-9.-]", "", socket.gethostname().lower()) or "unnamed"
    try:
        machine = MACHINE.read_bytes()
    except OSError:  # a container has none: its host name is its own
        machine = b""
    return f"{BEFORE}@{host}-{hashlib.blake2b(machine, digest_size=3).hexdigest()}"


def writer_of(file: Path) -> str:
    """Of the chain in this file: who began it, though the machine may have another name by now.
    A file without a sound first line is this machine's. Raises OSError."""
    try:
        with file.open("rb") as opened:
            first = parse(opened.readline().rstrip(b"\n"))
    except FileNotFoundError:
        first = None
    writer = first.row["writer"] if first is not None else ""
    return writer if writer == BEFORE or writer.startswith(f"{BEFORE}@") else own_writer()


def kept(target: Reach) -> AbstractContextManager[None]:
    """Events of this block go where those of all earlier commands are."""
    file = target.audit_file()
    return auditfile.kept(file, writer_of(file), _who(target.pki), own=True)


def fault(target: Reach, at_ms: int, unit: str, outcome: str, sentence: str) -> None:
    """``outcome``: "done", "refused", "not done" (no answer), "unknown"."""
    row = {"at_ms": at_ms, "fault": unit, "outcome": outcome, "sentence": sentence}
    file = target.audit_file()
    auditfile.note(file, writer_of(file), row | _who(target.pki))


def _who(pki: Path) -> dict[str, Any]:
    """Whose process this is (not from the environment, which says what it is told to), and which
    certificate it shows."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    return {"user": user, "certificate": str(roles.shown(pki))}
