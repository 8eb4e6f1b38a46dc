"""Brings the route instances of an IDC to what their RouteCluster says: look, decide (``routes``),
apply, let go of what is not wanted any more, say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imctl.api.routes import RouteClusterSpec
from imctl.reconcile.applied import Applied
from imctl.reconcile.beside import Around
from imctl.reconcile.besides import Besides
from imctl.reconcile.cluster import Cluster, read
from imctl.reconcile.observed import Object, Owner, Tell
from imctl.reconcile.routes import decide

# Region files of no pod, an autoscaler that is not wanted.
PRUNED = (("v1", "ConfigMap"), ("autoscaling/v2", "HorizontalPodAutoscaler"))


class RouteClusters:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event."""

    def __init__(
        self,
        cluster: Cluster,
        figures: Mapping[str, float],
        wall: Callable[[], str],
        tell: Tell,
    ) -> None:
        self._figures = figures
        self._besides = Besides(cluster, wall, tell, PRUNED)

    async def reconcile(
        self, owner: Owner, document: Object, applied: Applied
    ) -> tuple[bool, bool]:
        """Once; whether it waits for nothing more, and whether something of it changes. Raises
        ImError for what may do better later."""
        spec = read(RouteClusterSpec, document["spec"])
        _, found = await self._besides.see(owner, spec.idc, document, Around())
        decision = decide(owner, spec, found, self._figures)
        before = document.get("status", {})
        return await self._besides.bring(owner, decision, found, before, applied)
