"""What is done alike for all kinds whose pods stand beside an IDC's own: look, apply, let go of
what is not wanted any more, say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from imctl.api.beside import BesidePhase
from imctl.api.kinds import API_VERSION, IDC, REGION
from imctl.api.model import IdcSpec
from imctl.reconcile import seen
from imctl.reconcile.applied import Applied, is_ours
from imctl.reconcile.beside import EVERY, Around, Decision, rejected
from imctl.reconcile.besideobjects import BESIDE, selector_of, workload_of
from imctl.reconcile.cluster import LIFTER, Cluster, Rejected, read
from imctl.reconcile.objects import REGION_FILE, let_up, without_pods
from imctl.reconcile.observed import Object, Owner, Tell

_SERVED = (BesidePhase.SERVING, BesidePhase.UNREADY)
_WARNINGS = (BesidePhase.BLOCKED, BesidePhase.UNREADY, BesidePhase.DOWN)
_SETTLED = (BesidePhase.SERVING, BesidePhase.PAUSED, BesidePhase.DELETING)

S = TypeVar("S", bound=Around)


class Look(NamedTuple):
    """``idc``: the IDC object, None: it is not there; ``pods``: those that there are."""

    idc: Object | None
    pods: list[Object]


class Besides:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event. ``pruned``: kinds of which not
    all stay that were made. ``optional``: fields of the status that are there or not."""

    def __init__(
        self,
        cluster: Cluster,
        wall: Callable[[], str],
        tell: Tell,
        pruned: Sequence[tuple[str, str]],
        optional: Sequence[str] = (),
    ) -> None:
        self._cluster = cluster
        self._wall = wall
        self._tell = tell
        self._pruned = pruned
        self._optional = optional

    async def see(self, owner: Owner, name: str, document: Object, blank: S) -> tuple[Look, S]:
        """``name``: of the IDC object; ``blank``: what is filled in."""
        namespace, before = owner.namespace, document.get("status", {})
        own = await self._cluster.get(API_VERSION, IDC.name, namespace, name)
        idc, region, down_until = None, None, ""
        if own is not None:
            down_until = seen.down_until(own, self._wall())
            idc = read(IdcSpec, own["spec"])
            region = await self._cluster.get(API_VERSION, REGION.name, namespace, idc.region)
        kind = BESIDE[owner.kind].workload
        workload = await self._cluster.get("apps/v1", kind, namespace, workload_of(owner))
        if workload is not None and not is_ours(workload, (owner.uid,)):
            workload = None
        pods = await self._cluster.list("v1", "Pod", namespace, selector_of(owner))
        files = {
            each["metadata"]["name"]: each["metadata"].get("annotations", {}).get(REGION_FILE, "")
            for each in pods
        }
        troubles = [
            f"{each['metadata']['name']}: {why}"
            for each in pods
            if (why := seen.trouble_of(each.get("status", {})))
        ]
        unchanged = before.get("observed_generation") == owner.generation
        found = replace(
            blank,
            idc=idc,
            idc_status=(own or {}).get("status", {}),
            region=region["spec"] if region else None,
            workload=workload or {},
            pods=files,
            trouble=troubles[0] if troubles else "",
            served=unchanged and before.get("phase") in _SERVED,
            down_until=down_until,
        )
        return Look(own, pods), found

    async def bring(
        self, owner: Owner, decision: Decision, found: Around, before: Object, applied: Applied
    ) -> tuple[bool, bool]:
        """To what was decided. ``before``: the status as it was. Returns whether it waits for
        nothing more, and whether something of it changes. Raises ImError for what may do better
        later."""
        try:
            await self._cluster.apply_all(decision.apply, applied)
        except Rejected as error:
            await self._say(owner, rejected(decision, str(error)), before)
            await self._let_up(found)
            raise
        if decision.stop:
            if (none := without_pods(found.workload)) is not None:
                await self._cluster.apply(none, manager=LIFTER)
                applied.forget(none)
        elif not decision.apply:
            await self._let_up(found)
        if decision.apply and applied.kept != decision.keep:
            await self._prune(owner, decision)
            applied.kept = decision.keep
        said = await self._say(owner, decision, before)
        applied.note(said)
        # A drill's time is over by itself.
        down = bool(found.down_until)
        return decision.reason in _SETTLED and not down, said is not None or down

    async def _let_up(self, found: Around) -> None:
        """What is there now is left as it is, but not without what a drill has taken."""
        if not found.down_until and (up := let_up(found.workload)) is not None:
            await self._cluster.apply(up, manager=LIFTER)

    async def _prune(self, owner: Owner, decision: Decision) -> None:
        for api, kind in self._pruned:
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
        gone = {name for name in self._optional if name in before and name not in status}
        if gone or seen.differs(status, before):
            made = await self._cluster.apply(seen.status_object(owner, status), status=True)
        news = any(before.get(name) != status[name] for name in ("phase", "blocked_by"))
        if news or _has_stepped(status, before):
            warning = decision.reason in (*_WARNINGS, "Rejected")
            await self._tell(seen.event(owner, decision.reason, decision.message, now, warning))
        return made


def _has_stepped(status: Object, before: Object) -> bool:
    """Whether a rollout has gone on. What it waits for changes with every look, and is no news."""
    step = status.get("rollout", {}).get("step")
    return step is not None and step != before.get("rollout", {}).get("step")
