"""The region files that the pods of gateways were given: there their clients were told to find
them."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from imcore.region.model import Region
from imctl.reconcile.besideobjects import selector_of, workload_of
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.decide import judge_region
from imctl.reconcile.gatewayobjects import Ends, ends_of
from imctl.reconcile.observed import Object, Owner


class GatewayFiles:
    """A region file does not change, so each is read once, for as long as a pod has it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        # By uid of the GatewayCluster and mark; None: of no use.
        self._known: dict[str, dict[str, Region | None]] = {}

    async def ends(self, owner: Owner, idc: str, pods: Mapping[str, str]) -> dict[int, Ends]:
        """By number of the gateway. ``pods``: by name, the mark of the region file. Raises
        ImError."""
        numbers = {name: number_of(owner, name) for name in pods}
        wanted = {mark for name, mark in pods.items() if numbers[name]}
        known = self._known.get(owner.uid, {})
        if not wanted <= known.keys():
            known = await self._read(owner)
        self._known[owner.uid] = {mark: known.get(mark) for mark in wanted}
        found = {}
        for name, mark in pods.items():
            region, number = known.get(mark), numbers[name]
            if number and region is not None and idc in {each.name for each in region.spec.idcs}:
                found[number] = ends_of(region, idc, number)
        return found

    async def _read(self, owner: Owner) -> dict[str, Region | None]:
        found = await self._cluster.list("v1", "ConfigMap", owner.namespace, selector_of(owner))
        return {each["metadata"]["name"].rpartition("-")[2]: _region(each) for each in found}


def number_of(owner: Owner, pod: str) -> int:
    """0: it is none of the StatefulSet's, such as one that somebody has made by hand."""
    base, _, number = pod.rpartition("-")
    its = base == workload_of(owner) and number.isascii() and number.isdecimal()
    return int(number) if its else 0


def _region(config: Object) -> Region | None:
    document = yaml.safe_load(config["data"]["region.yaml"])
    return judge_region(document["metadata"]["name"], document["spec"])[0]
