"""Makes a DrillRun at each time of a Drill, once, and takes old ones away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime

from imctl.api.drills import DrillSpec, DrillStatus, SchedulePhase
from imctl.api.kinds import API_VERSION, DRILL_RUN
from imctl.reconcile import scheduled, seen
from imctl.reconcile.cluster import Cluster, Conflict, read
from imctl.reconcile.drillrun import STOP
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
        spec = read(DrillSpec, document["spec"])
        before = read(DrillStatus, document.get("status", {}))
        if owner.deleting:
            return None
        problems = await asyncio.to_thread(scheduled.problems_of, spec, owner.name)
        if not self._runs_drills:
            problems = ["this operator runs no drills (`drills.enabled` of its chart)", *problems]
        found, now = Turn(None, None), datetime.fromisoformat(self._wall())
        blackout, next_blackout = "", None
        if not problems:
            schedule = scheduled.schedule_of(spec, owner.name)
            blackout = scheduled.blackout_at(schedule, now)
            next_blackout = scheduled.next_blackout(schedule, now)
            if not spec.paused:
                made = document["metadata"].get("creationTimestamp", self._wall())
                since = datetime.fromisoformat(before.last_due or made)
                found = scheduled.turn(schedule, since, now)
        if found.due is not None and found.due.blackout is None:
            await self._make(scheduled.run_of(owner, spec, found.due.at))
        runs = await self._tidy(owner, spec, blackout)
        after = scheduled.said(before, owner.generation, spec, problems, found, runs)
        await self._say(owner, before, after)
        if after.phase is SchedulePhase.INVALID:
            return None
        awaited = [next_blackout, found.following.at if found.following else None]
        waits = [(each - now).total_seconds() for each in awaited if each is not None]
        return min(LOOK_S, *(max(0.5, each) for each in waits)) if waits else LOOK_S

    async def _make(self, run: Object) -> None:
        try:
            await self._cluster.create(run)
        except Conflict:
            return  # by an operator that did not live to say so

    async def _tidy(self, owner: Owner, spec: DrillSpec, blackout: str) -> list[Object]:
        """Its runs that are over, newest first; old ones go, and none goes on in a blackout."""
        labels = f"{scheduled.LABEL}={owner.name}"
        found = await self._cluster.list(API_VERSION, DRILL_RUN.name, owner.namespace, labels)
        for each in scheduled.to_stop(found) if blackout else ():
            with contextlib.suppress(Conflict):  # it has just been deleted
                await self._cluster.annotate(each, {STOP: blackout})
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
