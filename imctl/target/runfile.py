"""``run.json``: which processes a local deployment has. Written whole at each change, so that a
deployment that was half started, or whose `imctl` died, can still be stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from imcore.folders import alone
from imctl.errors import Failed
from imctl.target.process import Identity
from imctl.target.replacing import replacing

NAME = "run.json"
SITES = "sites.yaml"  # beside region.yaml: of a deployment on Kubernetes, also of one that is down
SITES_FOLDER = "sites"  # beside it: all that were ever wanted


@dataclass(slots=True)
class RunFile:
    region: str  # absolute path of the deployment's own copy of the region file
    faults: bool
    link_admin: str  # HOST:PORT of the link proxy's fault API
    processes: dict[str, Identity] = field(default_factory=dict)
    engines: list[str] = field(default_factory=list)  # those that run beside the IDCs
    # IDCs whose TiKV is none of those: it runs somewhere else, at addresses that were given.
    tikv_elsewhere: list[str] = field(default_factory=list)
    split: bool = False  # an IDC is a core, a front for each of its gateways, and its ipconfs
    standby: bool = False  # and a second core, which takes the place of the first
    routes: int = 0  # and so many route instances
    # Unit -> the region file that it has been started with, by name below regions/. A unit that
    # is not named has the deployment's own.
    regions: dict[str, str] = field(default_factory=dict)
    # Somebody else, such as the Kubernetes operator, runs its processes: it is reached by its
    # endpoints alone.
    elsewhere: bool = False
    # Of the Kubernetes target: the sites file of the start (what counts is SITES). Empty: of no
    # such one.
    sites: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        document = asdict(self)
        document["processes"] = {
            name: identity._asdict() for name, identity in self.processes.items()
        }
        with replacing(folder / NAME) as new:
            new.write_text(json.dumps(document, indent=1) + "\n")

    def copy(self) -> RunFile:
        return replace(
            self,
            processes=dict(self.processes),
            regions=dict(self.regions),
            engines=list(self.engines),
            tikv_elsewhere=list(self.tikv_elsewhere),
        )

    def write_over(self, base: RunFile, folder: Path) -> None:
        """What differs here from ``base``, which was read or written last; the rest as others have
        written it since, of whom each starts units of its own."""
        with alone(folder):
            now = read(folder)
            for name in () if now is None else (one.name for one in fields(self)):
                ours, was, theirs = (getattr(one, name) for one in (self, base, now))
                if isinstance(ours, dict):
                    setattr(self, name, _merged(ours, was, theirs))
                elif ours == was:
                    setattr(self, name, theirs)
            self.write(folder)


def _merged(
    ours: Mapping[str, Any], was: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """Ours where we have changed it, else theirs."""
    names = dict.fromkeys([*theirs, *ours])
    chosen = {n: (ours if ours.get(n) != was.get(n) else theirs) for n in names}
    return {name: whose[name] for name, whose in chosen.items() if name in whose}


def read(folder: Path) -> RunFile | None:
    """None when nothing was started here. Raises Failed when the file is damaged."""
    path = folder / NAME
    try:
        document = json.loads(path.read_text())
        processes = {name: Identity(**row) for name, row in document.pop("processes").items()}
        return RunFile(**document, processes=processes)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failed(
            f"{path}: expected what `imctl up` writes, got something else; look for processes of "
            "this deployment, stop them, then remove the file"
        ) from error
