"""Who may call what: the roles of people, and one table over every RPC method.

A caller is known by the name in its certificate: ``viewer``, ``operator`` and ``admin`` are people
(each may do what the one before may), every other name is a process of the region.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    VIEWER = "viewer"  # looks, and changes nothing
    OPERATOR = "operator"  # moves traffic and steers operations, within the safety rules
    ADMIN = "admin"  # everything: faults, processes, retire, overrides

    def covers(self, needed: Role) -> bool:
        return _RANK[self] >= _RANK[needed]


_RANK = {role: rank for rank, role in enumerate(Role)}
NAMES = frozenset(str(role) for role in Role)


def role_named(name: str) -> Role | None:
    """None: the certificate of a process, or of nobody."""
    return Role(name) if name in NAMES else None


class Access(NamedTuple):
    """``role``: the least one of people (None: no person). ``peers``: IDCs and the witness too."""

    role: Role | None
    peers: bool = False


_PEERS = Access(None, peers=True)

# Service -> method -> who. What does not stand here is refused, to everybody.
TABLE: Mapping[str, Mapping[str, Access]] = {
    "Logs": {"Tail": _PEERS, "Ends": _PEERS, "Snapshot": _PEERS},
    "Peer": {"Probe": _PEERS, "Facts": _PEERS, "Signals": _PEERS},
    "Media": {"Find": _PEERS, "Read": _PEERS, "Keep": _PEERS},
    "Registry": {
        "Info": Access(Role.VIEWER, peers=True),
        "Get": Access(Role.VIEWER, peers=True),
        "Range": Access(Role.VIEWER, peers=True),
        "Watch": Access(Role.VIEWER, peers=True),
        # What an operator or another IDC may swap is judged by its content, and leases are for
        # processes of the registry's own IDC: services.node.swaps.
        "CompareAndSwap": Access(Role.OPERATOR, peers=True),
        "LeaseGrant": Access(Role.ADMIN, peers=True),
        "LeaseKeepAlive": Access(Role.ADMIN, peers=True),
        "LeaseRevoke": Access(Role.ADMIN, peers=True),
    },
    "Admin": {
        "Status": Access(Role.VIEWER),
        "StateHash": Access(Role.OPERATOR),  # it reads, but all of the KV
        "Fault": Access(Role.ADMIN),
        "Shutdown": Access(Role.ADMIN),
    },
    "Users": {"Kick": Access(Role.OPERATOR)},
    "Engines": {"MoveKv": Access(Role.ADMIN)},
    "Archives": {
        "Closed": Access(Role.VIEWER),
        "Read": Access(Role.ADMIN),  # what people have written
    },
    "Front": {"Link": _PEERS},  # and of the same IDC: services.split.fronts
    "Ipconf": {"Tell": _PEERS},  # likewise: services.node.ipconfs
}


def refusal(name: str, method: str, peers: Collection[str]) -> str:
    """Why the holder of this name's certificate may not call ``/package.Service/Method``, in one
    sentence; empty: it may. ``peers``: the names of the region's IDCs and its witness."""
    _, service, call = method.split("/")
    service = service.rpartition(".")[2]
    access = TABLE.get(service, {}).get(call)
    role = role_named(name)
    if access is not None:
        if role is not None and access.role is not None and role.covers(access.role):
            return ""
        if role is None and access.peers and name in peers:
            return ""
    return said(name, f"{service}.{call}", _needed(access))


def _needed(access: Access | None) -> str:
    if access is None:
        return "is open to nobody"
    needed = [f"the role {access.role}"] if access.role is not None else []
    if access.peers:
        needed.append("the certificate of an IDC of this region")
    return f"needs {' or '.join(needed)}"


def said(name: str, what: str, needs: str) -> str:
    """The sentence of a refusal: the role (or name) shown, and what is needed."""
    role = role_named(name)
    shown = f"the role {role}" if role is not None else f"the name {name}" if name else "no name"
    return f"{what} {needs}; the certificate shown has {shown}"
