"""The region files of a deployment by what stands in them: ``regions/NAME.yaml``. A file of that
name never changes, so a process may be told it before it reads it.

Where a sites file belongs to what is wanted (sitefiles.py), a dot and its name follow."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from imcore.region.load import load_region
from imcore.region.model import Region
from imctl.errors import Failed
from imctl.target.replacing import replacing

FOLDER = "regions"


def name_of(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def path_of(folder: Path, name: str) -> Path:
    return folder / FOLDER / f"{name.partition('.')[0]}.yaml"


def keep(folder: Path, text: bytes) -> str:
    """Returns its name. Raises Failed."""
    name = name_of(text)
    keep_as(path_of(folder, name), text)
    return name


def keep_as(path: Path, text: bytes) -> None:
    """Raises Failed."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new, new.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise Failed(f"cannot write in {path.parent}: {error.strerror}") from error


def load(folder: Path, name: str) -> Region:
    """Raises BadInput when it is not there."""
    return load_region(path_of(folder, name))
