"""Judges Regions, and keeps each while an IDC that is to be drained names it: by its endpoints the
drain is asked for."""

from __future__ import annotations

from collections.abc import Callable

from imctl.api.kinds import API_VERSION, IDC
from imctl.reconcile import process, seen
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.decide import judge_region, region_status
from imctl.reconcile.observed import Object, Owner, Tell

WAIT_S = 3.0


class Regions:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event."""

    def __init__(self, cluster: Cluster, wall: Callable[[], str], tell: Tell) -> None:
        self._cluster = cluster
        self._wall = wall
        self._tell = tell

    async def reconcile(self, owner: Owner, document: Object) -> float | None:
        """Seconds until it is to be looked at again; None: when something happens. Raises ImError
        for what may do better later."""
        await self._judge(owner, document)
        held, needed = process.is_held(document), await self._is_needed(owner)
        if held != needed and (held or not owner.deleting):  # nothing new holds what is deleted
            await self._cluster.finalizers(document, [process.FINALIZER] if needed else [])
        return WAIT_S if owner.deleting and held and needed else None

    async def _judge(self, owner: Owner, document: Object) -> None:
        _, problems = judge_region(owner.name, document["spec"])
        status = region_status(problems, owner.generation)
        before = document.get("status", {})
        if seen.differs(status, before):
            await self._cluster.apply(seen.status_object(owner, status), status=True)
        if before.get("phase") != status["phase"]:
            message = problems[0] if problems else "as `imctl validate` wants it"
            event = seen.event(owner, status["phase"], message, self._wall(), bool(problems))
            await self._tell(event)

    async def _is_needed(self, owner: Owner) -> bool:
        idcs = await self._cluster.list(API_VERSION, IDC.name, owner.namespace)
        if not any(process.is_held(one) and one["spec"]["region"] == owner.name for one in idcs):
            return False
        # In a namespace that is given up the Secrets go too, and nothing can be drained.
        return not (owner.deleting and await self._ends(owner.namespace))

    async def _ends(self, namespace: str) -> bool:
        found = await self._cluster.get("v1", "Namespace", "", namespace)
        return found is None or "deletionTimestamp" in found["metadata"]
