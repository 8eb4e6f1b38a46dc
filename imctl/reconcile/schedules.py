"""Makes a DrillRun at each time of a Drill, once, and takes old ones away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from pydantic import ValidationError

from imctl.api.drills import DrillSpec, DrillStatus, SchedulePhase
from imctl.api.kinds import API_VERSION, DRILL_RUN
from imctl.reconcile import scheduled, seen
from imctl.reconcile.cluster import Cluster, Conflict, Rejected
from imctl.reconcile.observed import Object, Owner, Tell
from imctl.reconcile.scheduled import Turn

LOOK_S = 20.0  # its runs end, and the clock may be set


class Schedules:
    """``runs_drills``: whether this operator does; no run is made where it would not begin."""

    def __init__(
        self, cluster: Cluster, runs_drills: bool, wall: Callable[[], str], tell: Tell
    ) -> None:
        self._cluster = cluster
        self._runs_drills = runs_drills
        self._wall = wall
        self._tell = tell

    async def reconcile(self, owner: Owner, document: Object) -> float | None:
        """Seconds until it is to be looked at again; None: when it changes. Raises ImError."""
        try:
            spec = DrillSpec.model_validate(document["spec"])
            before = DrillStatus.model_validate(document.get("status", {}))
        except ValidationError as error:
            raise Rejected(f"the operator and the CRD differ in version: {error}") from error
        if owner.deleting:
            return None
        problems = await asyncio.to_thread(scheduled.problems_of, spec, owner.name)
        if not self._runs_drills:
            problems = ["this operator runs no drills (`drills.enabled` of its chart)", *problems]
        found, now = Turn(None, None), datetime.fromisoformat(self._wall())
        if not problems and not spec.paused:
            since = before.last_due or document["metadata"].get("creationTimestamp", self._wall())
            schedule = scheduled.schedule_of(spec, owner.name)
            found = scheduled.turn(schedule, datetime.fromisoformat(since), now)
        if found.due is not None and found.due.blackout is None:
            await self._make(scheduled.run_of(owner, spec, found.due.at))
        runs = await self._tidy(owner, spec)
        after = scheduled.said(before, owner.generation, spec, problems, found, runs)
        await self._say(owner, before, after)
        if after.phase is SchedulePhase.INVALID:
            return None
        if found.following is None:
            return LOOK_S
        return min(LOOK_S, max(0.5, (found.following.at - now).total_seconds()))

    async def _make(self, run: Object) -> None:
        try:
            await self._cluster.create(run)
        except Conflict:
            return  # by an operator that did not live to say so

    async def _tidy(self, owner: Owner, spec: DrillSpec) -> list[Object]:
        """Its runs that are over, newest first; old ones go."""
        labels = f"{scheduled.LABEL}={owner.name}"
        found = await self._cluster.list(API_VERSION, DRILL_RUN.name, owner.namespace, labels)
        runs = scheduled.over(found)
        for each in runs[spec.keep :]:
            name = each["metadata"]["name"]
            await self._cluster.delete(API_VERSION, DRILL_RUN.name, owner.namespace, name)
        return runs[: spec.keep]

    async def _say(self, owner: Owner, before: DrillStatus, after: DrillStatus) -> None:
        if after == before:
            return
        status = after.model_dump(mode="json", exclude_none=True)
        await self._cluster.apply(seen.status_object(owner, status), status=True)
        for reason, sentence, warning in _news(before, after):
            await self._tell(seen.event(owner, reason, sentence, self._wall(), warning))


def _news(before: DrillStatus, after: DrillStatus) -> list[tuple[str, str, bool]]:
    """(reason, sentence, whether it is a warning) of each Event."""
    found = []
    if after.problems and after.problems != before.problems:
        found.append(("Invalid", "; ".join(after.problems), True))
    if after.last_due != before.last_due:
        if after.left_out != before.left_out:
            found.append(("LeftOut", after.left_out, False))
        else:
            found.append(("Due", f"the run of {after.last_due}", False))
    return found
