"""destroy: the end of a deployment, processes and data."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from imcore import auditfile
from imcore.errors import BadInput, ImError
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.roles import Role
from imctl import admin, deployment, roles
from imctl.errors import Failed, Guarded
from imctl.options import Data
from imctl.rollout import store
from imctl.target import places, regions, runfile
from imctl.target.base import FRONT, IPCONF, ROUTE
from imctl.target.local import COPY, LINKPROXY, Local
from imctl.target.opening import opened


def destroy(
    yes_name: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The deployment's name, so that you are not asked for it.",
            show_default=False,
        ),
    ] = "",
    with_clients: Annotated[
        bool, typer.Option("--with-clients", help="Proceed even if clients are connected.")
    ] = False,
    data: Data = None,
) -> None:
    """Stop a deployment and delete its data.

    Deletes logs, KVs, registries, certificates and keys. Archives and data in engines that run
    elsewhere are kept. If the command is interrupted, run it again to continue.

    Exit status: 0 done, 1 failed, 2 the name does not match, 3 clients are connected.

    Example: imctl destroy --yes-name three-idc
    """
    folder = _find(data)
    roles.demand(folder / "pki", Role.ADMIN, "Destroying a deployment")
    region = load_region(folder / COPY)
    name = region.metadata.name
    target = opened(folder) if runfile.read(folder) else None
    if target is not None:
        target.demand_destroyable()
        target.find_lost()
        if not with_clients:
            _guard_clients(target)
    elif (folder / runfile.SITES).exists():
        _refuse_clusters(folder)
    typed = yes_name or typer.prompt(
        f"This deletes {folder} permanently. Type the deployment's name to confirm", err=True
    )
    if typed != name:
        raise BadInput(f"expected the deployment's name, {name}, got {typed!r}; nothing was done")
    with store.driving(folder):
        if target is not None:
            target.stop()
        left = _delete(folder, region)
    note = f"; left in {folder}: {', '.join(left)}" if left else ""
    print(f"destroyed {name}{note}")


def _find(data: Path | None) -> Path:
    """Of a deployment that runs, or that only has data. Raises Failed."""
    given = os.environ.get(deployment.VARIABLE)
    chosen = data or (Path(given) if given else None)
    if chosen is None:
        found = sorted(path.parent for path in Path("var").glob(f"*/{COPY}"))
        if len(found) != 1:
            names = ", ".join(str(path) for path in found) or "none below ./var"
            raise Failed(f"expected one deployment, found {names}; choose one with --data")
        chosen = found[0]
    if not (chosen / COPY).is_file():
        raise Failed(f"{chosen} is not a deployment's folder: it has no {COPY}")
    return chosen.absolute()


def _refuse_clusters(folder: Path) -> NoReturn:
    """A deployment on Kubernetes that is down has its volumes, and needs its keys. Raises
    Guarded."""
    # What it is made of takes its time to load: only for those who have one.
    from imctl.target import sitefiles

    raise Guarded(sitefiles.stays(sitefiles.own(folder)))


def _guard_clients(target: Local) -> None:
    """Raises Guarded when clients are connected, or nobody can tell."""
    running = {unit.name for unit in target.units() if unit.state != "gone"}
    idcs = [idc.name for idc in target.region.spec.idcs if idc.name in running]
    connected, silent = 0, []
    for idc, document in asyncio.run(admin.statuses(target, idcs)).items():
        if isinstance(document, ImError):
            silent.append(idc)
            continue
        connected += sum(int(row["connections"]) for row in document["gateways"])
    if connected:
        raise Guarded(
            f"{connected} clients are connected to {target.region.metadata.name}; nothing was "
            "done; use --with-clients to destroy it anyway"
        )
    if silent:
        raise Guarded(
            f"{', '.join(silent)}: running, but does not report whether clients are connected; "
            "nothing was done; use --with-clients to destroy it anyway"
        )


def _delete(folder: Path, region: Region) -> list[str]:
    """What a deployment writes, and nothing else that may lie there; its region file last, by which
    it is found again after a kill. Returns what is left."""
    idcs = [idc.name for idc in region.spec.idcs]
    witness = [region.spec.witness.name] if region.spec.witness else []
    beside = [  # of `up --split`, also of more than there are now
        path.name
        for idc in idcs
        for kind in (FRONT, IPCONF, ROUTE)
        for path in folder.glob(f"{idc}{kind}[0-9]*")
    ]
    drills = [
        "drills", "drill.lock", "drill-faults.json", "drill-faults.lock", "drill-faults.new",
        "drill-janitor.log",
    ]  # fmt: skip
    audits = [path.name for path in auditfile.files(folder / auditfile.FILE)]
    ours = [
        *idcs, *beside, *witness, *audits, *drills, "pki", "clients", "histories", regions.FOLDER,
        runfile.SITES_FOLDER, "links.json", "routes.json", f"{LINKPROXY}.log", places.NAME,
        runfile.NAME, store.NAME, store.PAUSE, store.LOCK, COPY,
    ]  # fmt: skip
    replaced = (places.NAME, runfile.NAME, COPY)  # `replacing` writes beside each of these
    half_written = [one.name for name in replaced for one in folder.glob(f".{name}.*.new")]
    half_written.append(f".{store.NAME}.new")
    for name in (*half_written, *ours):
        path = folder / name
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise Failed(f"cannot delete {error.filename}: {error.strerror}") from error
    left = sorted(path.name for path in folder.iterdir())
    if not left:
        folder.rmdir()
    return left
