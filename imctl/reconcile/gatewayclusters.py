"""Brings the gateways of an IDC to what their GatewayCluster says: look, decide (``gateways``),
apply, let go of what is not wanted any more, say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from imctl.api.gateways import GatewayClusterSpec
from imctl.reconcile import process, seen
from imctl.reconcile.applied import Applied
from imctl.reconcile.beside import Decision
from imctl.reconcile.besides import Besides
from imctl.reconcile.cluster import Cluster, read
from imctl.reconcile.gatewayfiles import GatewayFiles
from imctl.reconcile.gateways import Seen, decide
from imctl.reconcile.observed import Object, Owner, Tell

# Region files of no pod, Services of gateways that are gone, an autoscaler that is not wanted.
PRUNED = (
    ("v1", "ConfigMap"), ("v1", "Service"), ("autoscaling/v2", "HorizontalPodAutoscaler"),
)  # fmt: skip
_OPTIONAL = ("connections", "step_clients", "rollout")


class GatewayClusters:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event. ``heard``: whether the process
    of an IDC, by namespace and name, has just said what its status says of it."""

    def __init__(
        self,
        cluster: Cluster,
        figures: Mapping[str, float],
        wall: Callable[[], str],
        tell: Tell,
        heard: Callable[[str, str], bool],
    ) -> None:
        self._cluster = cluster
        self._figures = figures
        self._wall = wall
        self._heard = heard
        self._besides = Besides(cluster, wall, tell, PRUNED, _OPTIONAL)
        self._files = GatewayFiles(cluster)

    async def reconcile(
        self, owner: Owner, document: Object, applied: Applied
    ) -> tuple[bool, bool]:
        """Once; whether it waits for nothing more, and whether something of it changes. Raises
        ImError for what may do better later."""
        before = document.get("status", {})
        spec = read(GatewayClusterSpec, document["spec"])
        found = await self._see(owner, spec, document)
        decision = decide(owner, spec, found, self._figures)
        before = await self._begin_step(owner, decision, before, applied)
        if not owner.deleting:  # before there are any that could have clients
            await self._hold(owner, document, found)
        settled, changing = await self._besides.bring(owner, decision, found, before, applied)
        if owner.deleting:
            await self._hold(owner, document, found)
        return settled and not found.stay, changing

    async def _begin_step(
        self, owner: Owner, decision: Decision, before: Object, applied: Applied
    ) -> Object:
        """The status, with what the step is measured by before it begins: whoever goes on from here
        has to wait for so many."""
        clients = decision.status.get("step_clients")
        if clients is None or clients == before.get("step_clients"):
            return before
        status = {**before, "step_clients": clients}
        applied.note(await self._cluster.apply(seen.status_object(owner, status), status=True))
        return status

    async def _hold(self, owner: Owner, document: Object, found: Seen) -> None:
        held, needed = process.is_held(document), found.stay if owner.deleting else found.held
        if held != needed and (held or not owner.deleting):  # nothing new holds what is deleted
            await self._cluster.finalizers(document, [process.FINALIZER] if needed else [])

    async def _see(self, owner: Owner, spec: GatewayClusterSpec, document: Object) -> Seen:
        look, found = await self._besides.see(owner, spec.idc, document, Seen())
        told = {}
        if found.idc is not None:
            told = await self._files.ends(owner, found.idc.idc, found.pods)
        deleted = document["metadata"].get("deletionTimestamp", "")
        before = document.get("status", {})
        return replace(
            found,
            told=told,
            step_clients=before.get("step_clients"),
            rollout=before.get("rollout"),
            held=look.idc is not None and process.is_held(look.idc),
            stay=bool(deleted) and process.keeps_gateways(look.idc, deleted, self._wall()),
            heard=self._heard(owner.namespace, spec.idc),
        )
