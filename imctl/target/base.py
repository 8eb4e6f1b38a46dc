"""What a target must do. The commands know nothing else of where a deployment runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from imcore.region.model import Region
from imctl.plan.takes import Change

FRONT = ".gateway-"  # between an IDC's name and the number of a front
IPCONF = ".ipconf-"  # or of an ipconf
ROUTE = ".route-"  # or of a route instance
STANDBY = ".standby"  # behind an IDC's name: its core that does not serve


def idc_of(unit: str) -> str:
    """The IDC that this process is a part of; the name itself of what is no part of one."""
    for mark in (FRONT, IPCONF, ROUTE):
        unit = unit.partition(mark)[0]
    return unit.removesuffix(STANDBY)


class Unit(NamedTuple):
    """One process of a deployment: an IDC, the witness or the link proxy."""

    name: str
    state: str  # "running", "paused", "gone"; "elsewhere": nobody here knows
    pid: int


class Rolling(NamedTuple):
    """Gateways of an IDC that are on their way to what is wanted. ``mark``: another one, and they
    are further; ``more_s``: what each of them takes by its settings."""

    why: str
    mark: str = ""
    more_s: float = 0.0


class Place(NamedTuple):
    """Where objects of a deployment are. ``context``: of the kubeconfig; empty: the current one."""

    context: str
    namespace: str


class Target(Protocol):
    """All calls raise Failed or BadInput, with one clear line."""

    region: Region
    pki: Path

    def start(self, names: Sequence[str]) -> None:
        """Start these units; returns once they are running, perhaps not yet serving."""
        ...

    def stop(self) -> list[str]:
        """Stop everything. Returns the names of the units that had to be killed."""
        ...

    def kill(self, name: str) -> None:
        """At once and without a farewell, as a power cut would."""
        ...

    def pause(self, name: str) -> None:
        """A fault like a cut link: raises Guarded unless the deployment takes faults."""
        ...

    def resume(self, name: str) -> None: ...

    def wipe(self, name: str) -> None:
        """Delete the data of a unit that is down."""
        ...

    def keep_wanted(self, region_file: Path, sites_file: Path | None = None) -> str:
        """Keep a changed region file, as this deployment would have it; returns its name. On
        Kubernetes with a changed sites file; raises Guarded elsewhere."""
        ...

    def region_named(self, name: str) -> Region: ...

    def own_region(self) -> str:
        """The name of the deployment's own region file."""
        ...

    def region_of(self, name: str) -> str:
        """The name of the region file that this unit was started with."""
        ...

    def restart(self, name: str, region: str) -> None:
        """An IDC or the witness, with the region file of this name; done again, the same."""
        ...

    def adopt(self, region: str) -> None:
        """The region file of this name becomes the deployment's own."""
        ...

    def site_changes(self, wanted: str, names: Sequence[str]) -> list[Change]:
        """In what these units differ from the sites file that is wanted; where there is none, in
        nothing."""
        ...

    def apply(self, name: str, wanted: str) -> None:
        """Bring to a unit what its sites file changes while it has its clients; done again, the
        same. Raises Failed."""
        ...

    def rolling(self, name: str) -> Rolling | None:
        """Whether gateways of this unit, in pods of their own, are on their way."""
        ...

    def trouble(self, name: str) -> str:
        """Why a unit does not serve, as who runs its process says; empty where nobody does."""
        ...

    def objections(self, wanted: str, units: Sequence[str]) -> list[str]:
        """What stands, where they run, against starting these units with the region file of this
        name; nothing is changed."""
        ...

    def units(self) -> list[Unit]: ...

    def address(self, name: str) -> str:
        """HOST:PORT of a unit's Admin service."""
        ...

    def log_file(self, name: str) -> Path:
        """With all of its log until now."""
        ...

    def last_words(self, name: str) -> str:
        """The last line of its log, and where that is."""
        ...

    def audit_file(self) -> Path: ...
