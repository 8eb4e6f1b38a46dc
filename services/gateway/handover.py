"""What a gateway's process hands to its successor: its listeners, and the connections that it may.

The successor is the same process after an ``exec``: pid, open sockets and whoever supervises it
stay, memory does not. What must be known beyond the sockets goes along in a file without a name
(``memfd_create``), whose descriptor an environment variable names. A connection over TLS cannot be
handed on: its keys are in the memory of the TLS library.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from typing import NamedTuple

from imcore.errors import BadInput

VARIABLE = "IMCTL_HANDOVER"
_FORMAT = 2
_WITHOUT_QUIET = 1  # of a predecessor from before a connection's silence was handed on


class Standing(NamedTuple):
    """A connection: its socket and number, the session that it has, what has come of a message
    that is not whole yet, and how long beyond the usual time-out it may be silent."""

    fd: int
    number: int
    session: str
    unread: bytes
    quiet_ms: int


@dataclass(slots=True)
class Handover:
    """``since``: the token of im's sync up to which its sessions were told everything.
    ``restarts``: how many predecessors this gateway had. ``ended``: sessions that are over, each as
    its core is to be told, since nobody else would tell it."""

    gateway: str
    origin: str
    since: bytes
    restarts: int
    listeners: list[int]
    standing: list[Standing] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)

    def keep(self) -> None:
        """For the program that this process becomes next: every descriptor outlives the exec."""
        document = {
            "format": _FORMAT,
            "gateway": self.gateway,
            "origin": self.origin,
            "since": _text(self.since),
            "restarts": self.restarts,
            "listeners": self.listeners,
            "standing": [
                [one.fd, one.number, one.session, _text(one.unread), one.quiet_ms]
                for one in self.standing
            ],
            "ended": [_text(one) for one in self.ended],  # a successor may be too old to look
        }
        kept = os.memfd_create("imctl-handover", 0)
        with os.fdopen(os.dup(kept), "wb") as file:
            file.write(json.dumps(document).encode())
        for fd in (kept, *self.listeners, *(one.fd for one in self.standing)):
            os.set_inheritable(fd, True)
        os.environ[VARIABLE] = str(kept)


def taken() -> Handover | None:
    """What the predecessor has kept for this process, once. Its descriptors are not inherited any
    further. Raises BadInput when it was another version's."""
    named = os.environ.pop(VARIABLE, "")
    if not named:
        return None
    kept = int(named)
    os.lseek(kept, 0, os.SEEK_SET)
    with os.fdopen(kept, "rb") as file:
        document = json.load(file)
    if document["format"] not in (_FORMAT, _WITHOUT_QUIET):
        raise BadInput(f"{VARIABLE}: expected format {_FORMAT}, got {document['format']}")
    found = Handover(
        str(document["gateway"]),
        str(document["origin"]),
        base64.b64decode(document["since"]),
        int(document["restarts"]),
        [int(fd) for fd in document["listeners"]],
        [
            Standing(
                int(fd), int(number), str(session), base64.b64decode(unread), int(*quiet_ms or [0])
            )
            for fd, number, session, unread, *quiet_ms in document["standing"]
        ],
        [base64.b64decode(one) for one in document.get("ended", ())],  # of an older one: none
    )
    for fd in (*found.listeners, *(one.fd for one in found.standing)):
        os.set_inheritable(fd, False)
    return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
