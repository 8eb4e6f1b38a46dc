"""Everything that would stop a drill, found before anything is done. Pure: ``blockers`` judges what
``look`` has collected."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from imcore.errors import ImError
from imcore.region.model import Region
from imcore.roles import Role, said
from imctl import admin, roles
from imctl.commands.load import home_countries
from imctl.drill import onpods
from imctl.drill.faults import RunLock
from imctl.drill.model import Drill
from imctl.statusview import newest_policy
from imctl.target.base import Unit
from imctl.target.local import LINKPROXY, Local

STATUS_S = 2.0
LAG_MS_MAX = 2_000


class Blocker(NamedTuple):
    """``rule``: its id."""

    rule: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Of a deployment. ``documents``: the status of each unit, or why there is none."""

    faults: bool
    units: Sequence[Unit]
    documents: Mapping[str, dict[str, Any] | ImError]
    drill_runs: bool = False
    left: Sequence[str] = field(default_factory=tuple)  # faults that could not be undone
    role: Role = Role.ADMIN  # whose certificate is shown
    on_pods: bool = False
    faults_by: str = ""  # why it takes none
    late: Sequence[str] = ()  # IDCs not all of whose gateways in pods of their own are ready


async def look(target: Local, left: Sequence[str]) -> Seen:
    documents = await admin.statuses(target, target.names(), STATUS_S)
    held, role = RunLock(target.data).held(), roles.shown(target.pki)
    late = [
        idc.name
        for idc in target.region.spec.idcs
        if not await asyncio.to_thread(target.gateways_serve, idc.name)
    ]
    return Seen(
        target.faults, target.units(), documents, held, left, role, target.on_pods,
        target.faults_by, late,
    )  # fmt: skip


def blockers(
    region: Region, drill: Drill, values: Mapping[str, Any], seen: Seen, now: datetime
) -> list[Blocker]:
    return list(_blockers(region, drill, values, seen, now))


def _blockers(
    region: Region, drill: Drill, values: Mapping[str, Any], seen: Seen, now: datetime
) -> Iterator[Blocker]:
    idcs = [idc.name for idc in region.spec.idcs]
    if not seen.faults:
        yield Blocker("faults-off", seen.faults_by)
    for sentence in onpods.impossible(drill) if seen.on_pods else ():
        yield Blocker("on-pods", sentence)
    needed = drill.role_needed()
    if not seen.role.covers(needed):
        why = said(seen.role, f"The drill {drill.name}", f"needs the role {needed}")
        yield Blocker("role", why)
    if seen.drill_runs:
        yield Blocker("one-drill", "another drill is running on it; `imctl drill abort` ends it")
    for sentence in seen.left:
        yield Blocker("faults-left", sentence)
    if len(idcs) < 2:
        yield Blocker("idcs", "a drill needs a region of at least two IDCs")
    homes = home_countries(region)
    for idc in idcs:
        if idc not in homes:
            why = "no shard of the region file with countries gives it the greatest weight"
            yield Blocker("homes", f"no clients of the load would be at home in {idc}: {why}")
    for place, idc in drill.idcs_named(values):
        if idc not in idcs:
            yield Blocker("unknown-idc", f"{place}: expected one of {', '.join(idcs)}, got {idc!r}")
    for window in region.spec.safety.freeze:
        if datetime.fromisoformat(window.start) <= now < datetime.fromisoformat(window.end):
            yield Blocker("freeze-window", f"changes are frozen until {window.end}")
    for unit in seen.units:
        if unit.state != "running":
            yield Blocker("units-run", f"{unit.name} is {unit.state}")
    for name in seen.late:
        yield Blocker("gateways-serve", f"not all gateways of {name} are ready")
    for name, document in seen.documents.items():
        if isinstance(document, ImError):
            yield Blocker("units-answer", str(document))
        elif name in idcs:
            yield from _of_idc(name, document)
    yield from _of_policy(seen, idcs)
    links = seen.documents.get(LINKPROXY)
    for link in links.get("links", []) if isinstance(links, dict) else []:
        if link["mode"] != "pass" or not link["as_configured"]:
            yield Blocker("links-whole", f"the link {link['from']} -> {link['to']} has a fault")


def _of_idc(name: str, document: Mapping[str, Any]) -> Iterator[Blocker]:
    if not document.get("serving"):
        yield Blocker("serving", f"{name} does not serve yet")
    for alarm in document.get("alarms") or []:
        yield Blocker("no-alarms", f"{name}: {alarm}")
    for link in document.get("links_cut") or []:
        yield Blocker("links-whole", f"{name} has cut the link {link}")
    for link in document.get("links_slow") or []:
        yield Blocker("links-whole", f"{name} has slowed down the link {link}")
    for origin, lag in (document.get("lag") or {}).items():
        if float(lag.get("ms") or 0) > LAG_MS_MAX:
            yield Blocker(
                "replication-lag",
                f"{name} is {lag['ms']} ms behind {origin}; the limit is {LAG_MS_MAX} ms",
            )
    if document.get("clock", {}).get("skewed"):
        yield Blocker("clocks", f"the clock of {name} is off")


def _of_policy(seen: Seen, idcs: Sequence[str]) -> Iterator[Blocker]:
    answers = [
        one for name, one in seen.documents.items() if name in idcs and isinstance(one, dict)
    ]
    policy = newest_policy(answers)
    if not policy:
        return
    if policy.get("stale"):
        yield Blocker("majority", "no majority of registries answers")
    if operation := policy.get("operation"):
        yield Blocker("one-move-at-a-time", f"the operation {operation} is under way")
    for name, row in (policy.get("idcs") or {}).items():
        if row["state"] != "active" or row["ramp"] < 100:
            share = f" with {row['ramp']} % of its clients" if row["state"] == "active" else ""
            way = "uncordon" if row["state"] == "cordoned" else "failback"
            back = f"`imctl {way} {name}` returns its clients"
            yield Blocker("all-active", f"{name} is {row['state']}{share}; {back}")
