"""What a sites file would change, asked of an API server by a dry run; nothing is written."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml

from imcore.region.model import Region
from imctl.api.kinds import API_VERSION
from imctl.capacity.figures import Figures
from imctl.plan.takes import Change
from imctl.reconcile.besideobjects import BESIDE
from imctl.reconcile.cluster import Cluster, Rejected
from imctl.reconcile.observed import Object
from imctl.target import sites
from imctl.target.found import MANAGER
from imctl.target.sitechanges import Part, changes_of, refused
from imctl.target.sites import Sites


async def changes(
    cluster: Cluster, name: str, placed: Sites, region: Region, outdated: bool
) -> list[Change]:
    """Of one part, at its place. ``outdated``: its pod waits to be replaced. Raises Unavailable,
    Conflict."""
    namespace = placed.sites[name].namespace
    own = await cluster.get(API_VERSION, sites.kind_of(name, region), namespace, name)
    if own is None:
        return []
    beside = {}
    for kind in () if sites.is_witness(name, region) else BESIDE:
        if (found := await cluster.get(API_VERSION, kind, namespace, name)) is not None:
            beside[kind] = found
    made: dict[str, Object] = {}
    wanted = [sites.own_object(name, placed, region), *sites.beside(name, placed, region)]
    for each in wanted:
        try:
            made[each["kind"]] = await cluster.rehearse(each, MANAGER)
        except Rejected as error:
            return [refused(name, each["kind"], str(error))]
    new = made.pop(wanted[0]["kind"])
    part = Part(name, own, new, beside, made, outdated)
    return changes_of(part, region, _figures())


@cache
def _figures() -> Figures:
    """By which the operator reckons, too."""
    text = (files("imctl.capacity") / "figures.yaml").read_text(encoding="utf-8")
    return Figures.of(yaml.safe_load(text))
