"""The sites files of a deployment on Kubernetes, kept as its region files are: its own beside
``region.yaml``, and each that was ever wanted as ``sites/NAME.yaml``, by what stands in it.

What is wanted there is a pair: the names of a region file and of a sites file, with a dot between.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from imcore.errors import BadInput
from imctl.target import regions
from imctl.target.replacing import replacing
from imctl.target.runfile import SITES, SITES_FOLDER, RunFile
from imctl.target.sites import Sites


def own_text(folder: Path, run: RunFile) -> bytes:
    """Of the deployment itself. An `imctl` that kept no such file wrote it into ``run.json``."""
    return kept(folder) or yaml.safe_dump(run.sites).encode()


def kept(folder: Path) -> bytes | None:
    """Of the deployment that runs here, or was taken down."""
    path = folder / SITES
    return path.read_bytes() if path.exists() else None


def keep(folder: Path, region: str, text: bytes) -> str:
    """The name of the pair. Raises Failed."""
    name = regions.name_of(text)
    regions.keep_as(_path(folder, name), text)
    return f"{region.partition('.')[0]}.{name}"


def text_of(folder: Path, pair: str, run: RunFile) -> bytes:
    """A name without a sites file, as from an earlier `imctl`: the deployment's own. Raises
    BadInput when it is not there."""
    name = pair.partition(".")[2]
    if not name:
        return own_text(folder, run)
    path = _path(folder, name)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadInput(f"{path}: expected a sites file, and it is not there") from error


def load(folder: Path, pair: str, run: RunFile) -> Sites:
    """It was judged when it was kept. Raises BadInput when it is not there."""
    return Sites.model_validate(yaml.safe_load(text_of(folder, pair, run)))


def adopt(folder: Path, text: bytes | None) -> None:
    """The deployment's own from now on; None: it has none. Raises OSError."""
    if text is None:
        (folder / SITES).unlink(missing_ok=True)
        return
    with replacing(folder / SITES) as new:
        new.write_bytes(text)


def own(folder: Path) -> Sites:
    """Of one that was taken down. Raises OSError."""
    return Sites.model_validate(yaml.safe_load((folder / SITES).read_bytes()))


def stays(placed: Sites) -> str:
    """Why the keys of a deployment in its folder stay, too."""
    namespaces = ", ".join(sorted({site.namespace for site in placed.sites.values()}))
    return (
        f"its volumes and Secrets are the clusters': delete the namespaces ({namespaces}), then "
        "its folder"
    )


def _path(folder: Path, name: str) -> Path:
    return folder / SITES_FOLDER / f"{name}.yaml"
