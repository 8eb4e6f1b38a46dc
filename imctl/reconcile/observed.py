"""What the operator has seen of the cluster when it decides. Plain data: no I/O here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Object = dict[str, Any]
Tell = Callable[[Object], Awaitable[None]]  # keeps an Event


Port = tuple[str, int, str]  # name, number, protocol


class Owner(NamedTuple):
    """The IDC or Witness object that is reconciled."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Pod:
    name: str
    ready: bool
    served: bool  # it was ready once since it was made
    template: str  # by its annotation, the settings that it was made with
    region: str  # by its annotation, the region file that it was given
    trouble: str = ""  # why a container waits or has ended, in a sentence
    ports: tuple[Port, ...] = ()  # where it listens
    shares: bool = False  # its core is one of several, of which one serves
    runs: bool = False  # its container does, and is not told to end


class Core(NamedTuple):
    """A pod with a core of the IDC beside its own. ``runs``: it stands by, or serves."""

    name: str
    runs: bool
    serves: bool


@dataclass(frozen=True, slots=True)
class Observed:
    region: Object | None = None  # spec of the Region that is named, as it is in the cluster
    secrets: dict[str, frozenset[str]] = field(default_factory=dict)  # keys, by Secret that exists
    cert_manager: bool = False  # its Certificate kind is there
    pod: Pod | None = None
    state: str = ""  # of the IDC by the policy, as its process said last; empty: not known
    down_until: str = ""  # RFC 3339; until then at most a drill keeps it down; empty: none does
    cores: tuple[Core, ...] = ()
    served_lately: bool = False  # it serves, or has until a moment ago
