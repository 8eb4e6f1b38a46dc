"""Brings the cores beside an IDC's own to what their IMCluster says: look, decide (``cores``),
apply, let go of what is not wanted any more, say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from imctl.api.cores import ImClusterSpec
from imctl.reconcile import seen
from imctl.reconcile.applied import Applied
from imctl.reconcile.besides import Besides
from imctl.reconcile.cluster import Cluster, read
from imctl.reconcile.cores import Seen, decide
from imctl.reconcile.objects import TEMPLATE
from imctl.reconcile.observed import Object, Owner, Tell

PRUNED = (("v1", "ConfigMap"),)  # region files of no pod


class ImClusters:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event."""

    def __init__(
        self,
        cluster: Cluster,
        figures: Mapping[str, float],
        wall: Callable[[], str],
        tell: Tell,
    ) -> None:
        self._cluster = cluster
        self._figures = figures
        self._besides = Besides(cluster, wall, tell, PRUNED)

    async def reconcile(
        self, owner: Owner, document: Object, applied: Applied
    ) -> tuple[bool, bool]:
        """Once; whether it waits for nothing more, and whether something of it changes. Raises
        ImError for what may do better later."""
        spec = read(ImClusterSpec, document["spec"])
        found = await self._see(owner, spec, document)
        decision = decide(owner, spec, found, self._figures)
        before = document.get("status", {})
        return await self._besides.bring(owner, decision, found, before, applied)

    async def _see(self, owner: Owner, spec: ImClusterSpec, document: Object) -> Seen:
        look, found = await self._besides.see(owner, spec.idc, document, Seen())
        own = await self._cluster.get("v1", "Pod", owner.namespace, f"{spec.idc}-idc-0")
        cores = seen.cores_of(look.pods, spec.idc)
        names = {each.name for each in cores}
        pods = [each for each in look.pods if each["metadata"]["name"] in names]
        notes = [each["metadata"].get("annotations", {}) for each in pods]
        listens = [port for each in pods for port in seen.ports_of(each)]
        return replace(
            found,
            own=seen.pod_of(own, {}),
            cores=cores,
            templates=tuple(each.get(TEMPLATE, "") for each in notes),
            listens=tuple(listens),
            idc_generation=(look.idc or {}).get("metadata", {}).get("generation", 0),
        )
