"""Brings the gateways of an IDC to what their GatewayCluster says: look, decide (``gateways``),
apply, let go of what is not wanted any more, say."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imctl.api.gateways import GatewayClusterSpec, GatewayPhase
from imctl.api.kinds import API_VERSION, IDC
from imctl.api.model import IdcSpec
from imctl.reconcile import process, seen
from imctl.reconcile.applied import Applied
from imctl.reconcile.cluster import LIFTER, Cluster, Rejected, read
from imctl.reconcile.gatewayfiles import GatewayFiles
from imctl.reconcile.gatewayobjects import COMPONENT, selector_of
from imctl.reconcile.gateways import EVERY, Decision, Seen, decide
from imctl.reconcile.objects import REGION_FILE, let_up
from imctl.reconcile.observed import Object, Owner, Tell

PRUNED = (
    ("v1", "ConfigMap"), ("v1", "Service"), ("autoscaling/v2", "HorizontalPodAutoscaler"),
)  # fmt: skip
_OPTIONAL = ("connections", "step_clients")
_SERVED = (GatewayPhase.SERVING, GatewayPhase.UNREADY)
_WARNINGS = (GatewayPhase.BLOCKED, GatewayPhase.UNREADY, GatewayPhase.DOWN)
_SETTLED = (GatewayPhase.SERVING, GatewayPhase.PAUSED, GatewayPhase.DELETING)


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
        self._tell = tell
        self._heard = heard
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
        try:
            await self._cluster.apply_all(decision.apply, applied)
        except Rejected as error:
            await self._say(owner, _rejected(decision, str(error)), before)
            await self._let_up(found)
            raise
        if not decision.apply:
            await self._let_up(found)
        if decision.apply and applied.kept != decision.keep:
            await self._prune(owner, decision)
            applied.kept = decision.keep
        said = await self._say(owner, decision, before)
        applied.note(said)
        await self._hold(owner, document, found)
        # A drill's time is over by itself.
        down = bool(found.down_until)
        settled = decision.reason in _SETTLED and not found.stay and not down
        return settled, said is not None or down

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

    async def _let_up(self, found: Seen) -> None:
        """What is there now is left as it is, but not without what a drill has taken."""
        if not found.down_until and (up := let_up(found.workload)) is not None:
            await self._cluster.apply(up, manager=LIFTER)

    async def _hold(self, owner: Owner, document: Object, found: Seen) -> None:
        held, needed = process.is_held(document), found.stay if owner.deleting else found.held
        if held != needed and (held or not owner.deleting):  # nothing new holds what is deleted
            await self._cluster.finalizers(document, [process.FINALIZER] if needed else [])

    async def _see(self, owner: Owner, spec: GatewayClusterSpec, document: Object) -> Seen:
        namespace, before, now = owner.namespace, document.get("status", {}), self._wall()
        own = await self._cluster.get(API_VERSION, IDC.name, namespace, spec.idc)
        idc, region, down_until = None, None, ""
        if own is not None:
            down_until = seen.down_until(own, now)
            idc = read(IdcSpec, own["spec"])
            region = await self._cluster.get(API_VERSION, "Region", namespace, idc.region)
        name = f"{owner.name}-{COMPONENT}"
        workload = await self._cluster.get("apps/v1", "StatefulSet", namespace, name)
        pods = await self._cluster.list("v1", "Pod", namespace, selector_of(owner))
        files = {
            each["metadata"]["name"]: each["metadata"].get("annotations", {}).get(REGION_FILE, "")
            for each in pods
        }
        told = await self._files.ends(owner, idc.idc, files) if idc is not None else {}
        troubles = [
            f"{each['metadata']['name']}: {why}"
            for each in pods
            if (why := seen.trouble_of(each.get("status", {})))
        ]
        unchanged = before.get("observed_generation") == owner.generation
        served = unchanged and before.get("phase") in _SERVED
        deleted = document["metadata"].get("deletionTimestamp", "")
        return Seen(
            idc, (own or {}).get("status", {}), region["spec"] if region else None,
            workload or {}, files, told, troubles[0] if troubles else "", served,
            before.get("step_clients"), down_until, own is not None and process.is_held(own),
            bool(deleted) and process.keeps_gateways(own, deleted, now),
            self._heard(namespace, spec.idc),
        )  # fmt: skip

    async def _prune(self, owner: Owner, decision: Decision) -> None:
        """Region files of no pod, Services of gateways that are gone, an autoscaler that is not
        wanted any more."""
        for api, kind in PRUNED:
            if (kind, EVERY) in decision.keep:
                continue
            for each in await self._cluster.list(api, kind, owner.namespace, selector_of(owner)):
                metadata = each["metadata"]
                mine = any(one["uid"] == owner.uid for one in metadata.get("ownerReferences", ()))
                if mine and (kind, metadata["name"]) not in decision.keep:
                    await self._cluster.delete(api, kind, owner.namespace, metadata["name"])

    async def _say(self, owner: Owner, decision: Decision, before: Object) -> Object | None:
        """The object, if its status was another before."""
        made = None
        now, of = self._wall(), owner.generation
        conditions = [
            seen.condition(kind, holds, decision.reason, decision.message, before, of, now)
            for kind, holds in (("Ready", decision.ready), ("Rolled", decision.rolled))
        ]
        status = {**decision.status, "conditions": conditions}
        gone = {name for name in _OPTIONAL if name in before and name not in status}
        if gone or seen.differs(status, before):
            made = await self._cluster.apply(seen.status_object(owner, status), status=True)
        if any(before.get(name) != status[name] for name in ("phase", "blocked_by")):
            warning = decision.reason in (*_WARNINGS, "Rejected")
            await self._tell(seen.event(owner, decision.reason, decision.message, now, warning))
        return made


def _rejected(decision: Decision, why: str) -> Decision:
    status = {**decision.status, "phase": str(GatewayPhase.BLOCKED), "blocked_by": [why]}
    return decision._replace(status=status, ready=False, reason="Rejected", message=why)
