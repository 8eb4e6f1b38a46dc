"""Makes a plan for a deployment that runs: reads what it has, and asks its IDCs."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import Clock
from imctl import deployment
from imctl.errors import Failed
from imctl.plan.document import Plan, alone, changes_of, order_of
from imctl.plan.load import away_by
from imctl.target import runfile
from imctl.target.local import COPY, LINKPROXY, Local, default_data
from imctl.target.opening import opened
from imctl.traffic import Control


def folder_of(region: Region, data: Path | None) -> Path:
    """``--data``, else $IMCTL_DATA, else var/REGION: where `imctl up` would put it."""
    given = os.environ.get(deployment.VARIABLE)
    return (data or (Path(given) if given else default_data(region))).absolute()


def running(folder: Path) -> Local | None:
    """The deployment of this folder, if any process of it runs."""
    if runfile.read(folder) is None:
        return None
    target = opened(folder)
    target.find_lost()
    return target if any(unit.state != "gone" for unit in target.units()) else None


def fields_of(target: Local, wanted: str) -> Plan:
    """The differences alone: no IDC is asked."""
    units = _units(target)
    has = {name: target.region_named(target.region_of(name)) for name in units}
    found = changes_of(target.region_named(wanted), has, target.region, target.engines_here)
    found += target.site_changes(wanted, units)
    return Plan(target.region.metadata.name, True, tuple(found))


async def plan_of(target: Local, control: Control, wanted: str, canary: str, clock: Clock) -> Plan:
    """Raises BadInput for a canary that is none, Unavailable without a majority."""
    plan = fields_of(target, wanted)
    policy, evidence = await asyncio.gather(control.policy(), control.evidence())
    sessions = {idc: facts.sessions for idc, facts in evidence.idcs.items()}
    order = order_of(plan.changes, sessions, control.idcs, canary)
    if canary and canary not in order:
        names = ", ".join(order) or "none, because nothing is restarted"
        raise BadInput(f"--canary: expected an IDC that is restarted ({names}), got {canary!r}")
    has, new, now_ms = target.region, target.region_named(wanted), clock.wall_ms()
    restarted = replace(plan, order=order).restarted
    heard = [idc for idc in restarted if idc in evidence.idcs]
    loads = [away_by(idc, policy, has, new, evidence, now_ms) for idc in heard]
    silent = [idc for idc in order if idc in control.idcs and idc not in evidence.idcs]
    voters, answering = len(control.voters), len(control.voters) - len(control.idcs)
    answering += len(evidence.idcs)
    warnings = await asyncio.to_thread(target.objections, wanted, order)
    if restarted and answering - 1 <= voters // 2:
        warnings.append(
            f"during each restart only {answering - 1} of {voters} registries answer, so neither "
            "a policy change nor a failover is possible"
        )
    warnings += alone(plan.changes, restarted)
    return Plan(
        plan.region, True, plan.changes, order, tuple(loads), tuple(silent), tuple(warnings)
    )


def new_plan(region: Region) -> Plan:
    """Of a deployment of which nothing runs."""
    return Plan(region.metadata.name, False, ())


def _units(target: Local) -> list[str]:
    """Those that are started with a region file, IDCs first."""
    idcs = [idc.name for idc in target.region.spec.idcs]
    return [*idcs, *(name for name in target.names() if name not in (*idcs, LINKPROXY))]


def check_data_fit(folder: Path, region: Region) -> None:
    """Nothing runs, but there are data: what is laid out by a field that differs cannot be read.
    Raises Failed."""
    try:
        earlier = load_region(folder / COPY)
    except BadInput:
        return
    has_data = any((folder / idc.name / "data").exists() for idc in earlier.spec.idcs)
    if has_data and earlier.spec.partitions != region.spec.partitions:
        raise Failed(
            f"the data in {folder} has {earlier.spec.partitions} partitions, but the region file "
            f"has {region.spec.partitions}; correct the file, or delete the data with `imctl "
            "destroy`"
        )
