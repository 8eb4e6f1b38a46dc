"""plan, diff: what a region file would change, without changing anything."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Annotated

import typer

from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from imctl.errors import OK, USAGE, Failed
from imctl.options import FileData, Format, Output, RegionFile, SitesFile
from imctl.output import emit
from imctl.plan.document import Plan, as_json, changes_as_json
from imctl.planning import fields_of, folder_of, new_plan, plan_of, running
from imctl.planview import changes_view, plan_view
from imctl.target.local import Local
from imctl.traffic import Control

Canary = Annotated[
    str,
    typer.Option(
        metavar="IDC",
        help="The IDC to change first [default: the one with the fewest sessions].",
        show_default=False,
    ),
]


def plan(
    file: RegionFile,
    canary: Canary = "",
    sites: SitesFile = None,
    output: Output = Format.TABLE,
    data: FileData = None,
) -> None:
    """Show what a region file would change, and how.

    For each changed field: whether it needs a restart. For each restart: which sessions move, and
    whether the other IDCs can carry them. On Kubernetes it also shows differences from the sites
    file, by a dry run on the API servers. Nothing is changed.

    Exit status: 0 no difference, 2 a difference (or a wrong file).

    Example: imctl plan regions/three-idc.yaml -o json
    """
    region = load_region(file)
    target = running(folder_of(region, data))
    if target is None:
        found = _new(region, sites)
    else:
        found = asyncio.run(look(target, target.keep_wanted(file, sites), canary))
    emit(as_json(found), output, lambda: plan_view(found))
    raise typer.Exit(USAGE if found.differs else OK)


def diff(
    file: RegionFile, sites: SitesFile = None, output: Output = Format.TABLE, data: FileData = None
) -> None:
    """Show how a region file differs from the running deployment.

    Only the fields are shown; `imctl plan` also shows what the change needs.

    Exit status: 0 no difference, 2 a difference (or a wrong file).

    Example: imctl diff regions/three-idc.yaml
    """
    region = load_region(file)
    target = running(folder_of(region, data))
    if target is None:
        found = _new(region, sites)
    else:
        found = fields_of(target, target.keep_wanted(file, sites))
    emit(changes_as_json(found.changes), output, lambda: changes_view(found))
    raise typer.Exit(USAGE if found.differs else OK)


def _new(region: Region, sites: Path | None) -> Plan:
    """Raises BadInput, Failed for a sites file with which it would not start."""
    if sites is not None:
        # Of the operator's modules, too: only for those who have one.
        from imctl.target import sites as sitefile

        try:
            sitefile.read(sites.read_text(), region, str(sites))
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from error
    return new_plan(region)


async def look(target: Local, wanted: str, canary: str = "") -> Plan:
    clock = SystemClock()
    async with Control(target, clock, random.Random()) as control:
        return await plan_of(target, control, wanted, canary, clock)
