"""The deployment of a folder, on whichever target it is."""

from __future__ import annotations

from pathlib import Path

from imctl.target import runfile
from imctl.target.local import Local


def opened(folder: Path) -> Local:
    """Raises Failed."""
    run = runfile.read(folder) if folder.exists() else None
    if run is None or not run.sites:
        return Local.open(folder)
    # A client of Kubernetes takes its time to load: only for those who have one.
    from imctl.target.kubernetes import Kubernetes

    return Kubernetes.open(folder)
