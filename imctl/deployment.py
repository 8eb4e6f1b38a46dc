"""Which running deployment a command means, and calls to its processes."""

from __future__ import annotations

import os
from pathlib import Path

from imctl import roles
from imctl.errors import Failed
from imctl.target.local import COPY, Local
from imctl.target.opening import opened
from imctl.target.runfile import NAME, SITES

VARIABLE = "IMCTL_DATA"


def find(data: Path | None) -> Local:
    """``--data``, else $IMCTL_DATA, else the one deployment below ./var. Raises Failed;
    BadInput when the key of the role that is to be shown is not there."""
    chosen = data or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if chosen is not None:
        return _found(chosen)
    found = sorted(path.parent for path in Path("var").glob(f"*/{NAME}"))
    if not found:
        known = [path.parent for path in Path("var").glob(f"*/{COPY}")]
        if len(known) == 1:
            raise _down(known[0])
        raise Failed(
            "no deployment found in ./var; start one with `imctl up FILE`, or name its folder "
            "with --data"
        )
    if len(found) > 1:
        names = ", ".join(str(path) for path in found)
        raise Failed(f"there are several deployments ({names}); choose one with --data")
    return _found(found[0])


def folder(data: Path | None) -> Path:
    """Of a deployment, running or not. Raises Failed."""
    chosen = data or (Path(named) if (named := os.environ.get(VARIABLE)) else None)
    if chosen is None:
        known = [path.parent for path in Path("var").glob("*/region.yaml")]
        chosen = known[0] if len(known) == 1 else find(None).data
    if not (chosen / "region.yaml").exists():
        raise Failed(f"{chosen} is not a deployment's folder; choose one with --data")
    return chosen


def _found(folder: Path) -> Local:
    if (folder / COPY).exists() and not (folder / NAME).exists():
        raise _down(folder)
    target = opened(folder)
    roles.check(target.pki)
    return target


def _down(folder: Path) -> Failed:
    starts = "deploy" if (folder / SITES).exists() else "up"
    return Failed(f"the deployment in {folder} is down; start it with `imctl {starts} FILE`")
