"""Runs DrillRuns: one at a time, each once, and nothing of it is left whoever dies.

A run that an operator has begun and does not run (its process is another's, or was) is not begun
again: what it did is undone. The finalizer keeps its object until then."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Sequence

from imcore.errors import BadInput
from imcore.pki import REGION_KEYS
from imctl.api.drills import DRILL_FINAL, DrillPhase, DrillRunSpec, DrillRunStatus
from imctl.api.kinds import API_VERSION, DRILL_RUN, IDC
from imctl.reconcile import drillrun, needs, seen
from imctl.reconcile.cluster import Cluster, read
from imctl.reconcile.driller import Drilling, Job
from imctl.reconcile.moments import passed_s
from imctl.reconcile.observed import Object, Owner, Tell
from imctl.reconcile.peers import pki_of

FOLLOW_S = 1.0
WAIT_S = 3.0
AGAIN_S = 10.0  # between tries to undo

Status = DrillRunStatus


class DrillRuns:
    """``drilling``: None where this operator runs none. ``runner``: its process, as no other is
    named. ``namespaces``: those that it works in; none: all."""

    def __init__(
        self,
        cluster: Cluster,
        drilling: Drilling | None,
        runner: str,
        namespaces: Sequence[str],
        wall: Callable[[], str],
        tell: Tell,
    ) -> None:
        self._cluster = cluster
        self._drilling = drilling
        self._runner = runner
        self._namespaces = namespaces or [""]
        self._wall = wall
        self._tell = tell
        self._one_begins = asyncio.Lock()
        self._lacking: dict[str, str] = {}  # uid -> since when it cannot be undone; RFC 3339

    async def reconcile(self, owner: Owner, document: Object) -> float | None:
        """Seconds until it is to be looked at again; None: never. Raises NotLeading, and ImError
        for what the cluster does not do."""
        spec = read(DrillRunSpec, document["spec"])
        before = read(Status, document.get("status", {}))
        if before.phase in DRILL_FINAL:
            self._lacking.pop(owner.uid, None)
            if self._drilling is not None:
                self._drilling.forget(owner.uid)
            if drillrun.FINALIZER in document["metadata"].get("finalizers", ()):
                await self._cluster.finalizers(document, [])
            return None
        under_way = before.phase in drillrun.UNDER_WAY
        if owner.deleting and not under_way:
            return None
        if self._drilling is None:
            why = "this operator runs no drills (`drills.enabled` of its chart)"
            if under_way:
                return await self._lacks(owner, spec, before, why)
            await self._say(owner, before, drillrun.waiting(before, owner.generation, [why]))
            return None
        if not under_way:
            return await self._begin(owner, spec, before, document, self._drilling)
        if before.phase is DrillPhase.RUNNING and self._drilling.runs(owner.uid):
            return await self._follow(owner, before, self._drilling, drillrun.stop_of(document))
        return await self._undo(owner, spec, before, self._drilling)

    # ------------------------------------------------------------------------------ one run

    async def _begin(
        self, owner: Owner, spec: DrillRunSpec, before: Status, document: Object, drilling: Drilling
    ) -> float | None:
        if stop := drillrun.stop_of(document):
            await self._refuse(owner, before, [stop])
            return None
        text, problems = await asyncio.to_thread(
            drillrun.text_of, spec, owner.name
        )  # it loads the toolkit
        if not problems:
            try:
                job = await self._job(owner, spec, text)
                problems = list(drillrun.misfits(spec, job.region))
            except BadInput as error:
                return await self._wait_to_begin(owner, spec, before, document, [str(error)])
        if problems:
            await self._refuse(owner, before, problems)
            return None
        if stands := await self._objections(owner, spec, job):
            return await self._wait_to_begin(owner, spec, before, document, stands)
        async with self._one_begins:
            if other := drillrun.other_under_way(owner, await self._all()):
                why = [f"{other} is under way"]
                return await self._wait_to_begin(owner, spec, before, document, why)
            # Before it is begun: whoever comes next knows that there may be something to undo.
            await self._cluster.finalizers(document, [drillrun.FINALIZER])
            after = drillrun.begun(before, owner.generation, self._runner, self._wall())
            await self._say(owner, before, after)
            drilling.begin(owner.uid, job)
        return FOLLOW_S

    async def _follow(self, owner: Owner, before: Status, drilling: Drilling, stop: str) -> float:
        if (done := drilling.done(owner.uid)) is None:
            if owner.deleting or stop:
                drilling.stop(owner.uid, hurry=owner.deleting)
            return FOLLOW_S
        name = ""
        if done.report is not None and not owner.deleting:
            report = drillrun.report_object(owner, done.files)
            await self._cluster.apply(report)
            name = drillrun.report_name(owner)
        after = drillrun.ended(before, done, name, owner.generation, self._wall(), stop)
        await self._say(owner, before, after)  # first: what is forgotten would count as lost
        drilling.forget(owner.uid)
        return 0.0

    async def _undo(
        self, owner: Owner, spec: DrillRunSpec, before: Status, drilling: Drilling
    ) -> float:
        if before.phase is DrillPhase.RUNNING or before.runner != self._runner:
            why = f"{before.runner} ended while it ran; what it had done is undone"
            after = drillrun.undoing(before, self._runner, "aborted", why)
            await self._say(owner, before, after)
            before = after
        if not drilling.runs(owner.uid):
            try:
                drilling.undo(owner.uid, await self._job(owner, spec, ""))
            except BadInput as error:
                return await self._lacks(owner, spec, before, str(error))
            self._lacking.pop(owner.uid, None)
            return FOLLOW_S
        if (done := drilling.done(owner.uid)) is None:
            return FOLLOW_S
        if done.status != 0:
            drilling.forget(owner.uid)
            lines = done.said.splitlines() or [f"it ended with {done.status}"]
            await self._wait(owner, before, [lines[-1].removeprefix("error: ")])
            return AGAIN_S
        await self._say(owner, before, drillrun.undone(before, self._wall()))
        return 0.0

    async def _lacks(self, owner: Owner, spec: DrillRunSpec, before: Status, why: str) -> float:
        """Nobody can undo it now. Who deletes it waits for no longer than its faults last by
        themselves: what it lacks may never come back."""
        now = self._wall()
        since = self._lacking.setdefault(owner.uid, now)
        if owner.deleting:
            last_s = await asyncio.to_thread(drillrun.fault_max_s, spec, owner.name)
            if passed_s(since, now) > last_s:
                await self._say(owner, before, drillrun.given_up(before, why, now))
                return 0.0
        return await self._wait(owner, before, [why])

    # ------------------------------------------------------------------------ what it needs

    async def _job(self, owner: Owner, spec: DrillRunSpec, text: str) -> Job:
        """Raises BadInput for what is not there (yet)."""
        region = await needs.region_of(self._cluster, owner, spec.region)
        pki = pki_of(await needs.secret_of(self._cluster, owner, spec.certificate))
        keys = await needs.secret_of(self._cluster, owner, spec.region_keys)
        try:
            pki[REGION_KEYS] = base64.b64decode(keys.get("data", {})[REGION_KEYS], validate=True)
        except (KeyError, binascii.Error) as error:
            raise BadInput(f"Secret {spec.region_keys} lacks {REGION_KEYS}") from error
        namespaces = drillrun.namespaces_of(spec, region, owner.namespace)
        return Job(drillrun.name_of(spec, owner.name), text, spec.var, region, namespaces, pki)

    async def _objections(self, owner: Owner, spec: DrillRunSpec, job: Job) -> list[str]:
        found = []
        for idc in job.region.spec.idcs:
            at = job.namespaces[idc.name]
            theirs = await self._cluster.get(API_VERSION, IDC.name, at, idc.name)
            found.append(drillrun.objection(owner, spec, idc.name, theirs, at))
        return [each for each in found if each]

    async def _all(self) -> list[Object]:
        lists = [
            await self._cluster.list(API_VERSION, DRILL_RUN.name, each) for each in self._namespaces
        ]
        return [each for some in lists for each in some]

    # ------------------------------------------------------------------------ what is said

    async def _wait_to_begin(
        self, owner: Owner, spec: DrillRunSpec, before: Status, document: Object, why: list[str]
    ) -> float | None:
        made = document["metadata"].get("creationTimestamp", "")
        if drillrun.is_late(spec, made, self._wall()):
            late = f"it could not begin within {spec.begin_within_s} s"
            await self._refuse(owner, before, [f"{late}: {each}" for each in why])
            return None
        return await self._wait(owner, before, why)

    async def _refuse(self, owner: Owner, before: Status, why: list[str]) -> None:
        after = drillrun.refused(before, owner.generation, why, self._wall())
        await self._say(owner, before, after)

    async def _wait(self, owner: Owner, before: Status, why: list[str]) -> float:
        await self._say(owner, before, drillrun.waiting(before, owner.generation, why))
        return WAIT_S

    async def _say(self, owner: Owner, before: Status, after: Status) -> None:
        if after == before:
            return
        status = after.model_dump(mode="json", exclude_none=True)
        await self._cluster.apply(seen.status_object(owner, status), status=True)
        for reason, sentence, warning in drillrun.news(before, after):
            await self._tell(seen.event(owner, reason, sentence, self._wall(), warning))
