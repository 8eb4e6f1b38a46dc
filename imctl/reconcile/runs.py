"""Asks for what TrafficOperations say, each once, and follows what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from imcore.region.model import Region
from imctl.api.operation import FINAL, RunPhase, TrafficOperationSpec, TrafficOperationStatus
from imctl.opwatch import UNKNOWN_S
from imctl.reconcile import needs, seen, traffic
from imctl.reconcile.cluster import Cluster, read
from imctl.reconcile.observed import Object, Owner, Tell
from imctl.reconcile.peers import SILENT, Mover, Peers
from services.policy.document import OperationState

FOLLOW_S = 1.0
WAIT_S = 3.0

Status = TrafficOperationStatus


class Runs:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event."""

    def __init__(self, cluster: Cluster, peers: Peers, wall: Callable[[], str], tell: Tell) -> None:
        self._cluster = cluster
        self._peers = peers
        self._wall = wall
        self._tell = tell
        self._doubted: dict[str, float] = {}  # when its end was first unknown, by uid

    async def reconcile(self, owner: Owner, document: Object) -> float | None:
        """Seconds until it is to be looked at again; None: never. Raises NotLeading, and ImError
        for what the cluster does not do."""
        spec = read(TrafficOperationSpec, document["spec"])
        before = read(Status, document.get("status", {}))
        if before.phase in FINAL or owner.deleting:
            return None
        run = _Run(self._cluster, owner, spec, before, self._say)
        try:
            region, secret = await run.needs()
            async with self._peers.steering(owner.namespace, region, secret) as control:
                if run.status.phase is RunPhase.RUNNING:
                    await run.follow(control, self._doubtful_for)
                else:
                    await run.ask(control, region)
        except SILENT as error:
            await run.say(traffic.waiting(run.status, owner.generation, [str(error)]))
            return WAIT_S
        if run.status.phase in FINAL:
            self._doubted.pop(owner.uid, None)
            return None
        return FOLLOW_S

    def _doubtful_for(self, uid: str) -> float:
        """Seconds since this was first asked of it."""
        now = asyncio.get_running_loop().time()
        return now - self._doubted.setdefault(uid, now)

    async def _say(self, owner: Owner, before: Status, after: Status) -> None:
        if after == before:
            return
        status = after.model_dump(mode="json", exclude_none=True)
        await self._cluster.apply(seen.status_object(owner, status), status=True)
        for reason, sentence, warning in traffic.news(before, after):
            await self._tell(seen.event(owner, reason, sentence, self._wall(), warning))


class _Run:
    """One look at one object."""

    def __init__(
        self,
        cluster: Cluster,
        owner: Owner,
        spec: TrafficOperationSpec,
        status: Status,
        say: Callable[[Owner, Status, Status], Awaitable[None]],
    ) -> None:
        self._cluster = cluster
        self._owner = owner
        self._spec = spec
        self.status = status
        self._say = say

    async def say(self, status: Status) -> None:
        before, self.status = self.status, status
        await self._say(self._owner, before, status)

    async def needs(self) -> tuple[Region, Object]:
        """Raises BadInput for what is not there (yet)."""
        owner, spec = self._owner, self._spec
        region = await needs.region_of(self._cluster, owner, spec.region)
        return region, await needs.secret_of(self._cluster, owner, spec.certificate)

    async def ask(self, control: Mover, region: Region) -> None:
        """Before it asks it writes down that it does, and at which epoch: whoever comes after it
        knows what may have been begun."""
        change, generation = traffic.change_of(self._owner, self._spec), self._owner.generation
        if misfits := traffic.misfits(self._spec, region):
            sentence = "; ".join(each.sentence for each in misfits)
            await self.say(traffic.refused(self.status, sentence, misfits))
            return
        policy = await control.policy()
        if self.status.phase is not RunPhase.ASKING:
            await self.say(traffic.asking(self.status, generation, policy.epoch))
        elif traffic.may_be_forgotten(policy, change.request_id, self.status.epoch):
            await self.say(traffic.lost(self.status))
            return
        decision = await control.submit(change)
        if decision.policy is None:
            await self.say(traffic.refused(self.status, decision.sentence, decision.blockers))
        else:
            await self.say(traffic.begun(self.status, decision))

    async def follow(self, control: Mover, doubtful_for: Callable[[str], float]) -> None:
        operation = await control.operation(self.status.operation)
        if operation is None:  # so many have come since that its record is gone
            await self.say(traffic.lost(self.status))
            return
        unknown = operation.state is OperationState.UNKNOWN
        final = unknown and doubtful_for(self._owner.uid) >= UNKNOWN_S
        await self.say(traffic.followed(self.status, operation, final))
