"""plan, diff: what a region file would change, without changing anything."""

from __future__ import annotations

import asyncio
import random
from typing import Annotated

import typer

from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imctl.errors import OK, USAGE
from imctl.options import Data, Format, Output, RegionFile
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
        help="Which IDC goes first [default: the one with the fewest sessions].",
        show_default=False,
    ),
]


def plan(
    file: RegionFile, canary: Canary = "", output: Output = Format.TABLE, data: Data = None
) -> None:
    """Show what a region file would change: by field what it takes, who moves, who carries it.

    Nothing is changed. Exit status: 0 no difference, 2 a difference (or a wrong file).

    Example: imctl plan regions/three-idc.yaml -o json
    """
    region = load_region(file)
    target = running(folder_of(region, data))
    found = new_plan(region)
    if target is not None:
        found = asyncio.run(look(target, target.keep_wanted(file), canary))
    emit(as_json(found), output, lambda: plan_view(found))
    raise typer.Exit(USAGE if found.differs else OK)


def diff(file: RegionFile, output: Output = Format.TABLE, data: Data = None) -> None:
    """Show only the fields in which a region file differs from what runs.

    Exit status: 0 no difference, 2 a difference (or a wrong file).

    Example: imctl diff regions/three-idc.yaml
    """
    region = load_region(file)
    target = running(folder_of(region, data))
    found = new_plan(region) if target is None else fields_of(target, target.keep_wanted(file))
    emit(changes_as_json(found.changes), output, lambda: changes_view(found))
    raise typer.Exit(USAGE if found.differs else OK)


async def look(target: Local, wanted: str, canary: str = "") -> Plan:
    clock = SystemClock()
    async with Control(target, clock, random.Random()) as control:
        return await plan_of(target, control, wanted, canary, clock)
