"""Asks the processes of IDCs how they are, and empties those whose objects are deleted."""

from __future__ import annotations

from collections.abc import Callable

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.api.model import IdcSpec
from imctl.reconcile import needs, process, seen
from imctl.reconcile.cluster import LOOKER, Cluster, read
from imctl.reconcile.moments import passed_s
from imctl.reconcile.observed import Object, Owner, Tell
from imctl.reconcile.peers import SILENT, Peers

LOOK_S = 5.0
APPLIED_S = 30.0  # between writes of how far logs are folded, which every message changes
LATE_S = 3 * LOOK_S  # what an IDC said before is not taken for what it says now


class Looks:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event. ``held``: called with the
    namespace and Region of an IDC that is to be drained before it goes from now on, or no
    longer."""

    def __init__(
        self,
        cluster: Cluster,
        peers: Peers,
        wall: Callable[[], str],
        tell: Tell,
        held: Callable[[str, str], None],
    ) -> None:
        self._cluster = cluster
        self._peers = peers
        self._wall = wall
        self._tell = tell
        self._held = held
        # By namespace and name of an IDC, when; RFC 3339.
        self._heard: dict[tuple[str, str], str] = {}
        self._written: dict[tuple[str, str], str] = {}

    @staticmethod
    def is_of_use(document: Object) -> bool:
        """Whether there is something to ask, or left of asking."""
        return bool(
            document.get("spec", {}).get("role_certificate")
            or "process" in document.get("status", {})
            or process.is_held(document)
        )

    def heard(self, namespace: str, name: str) -> bool:
        """Whether the process of an IDC has just said what its status says of it."""
        at = self._heard.get((namespace, name))
        return at is not None and passed_s(at, self._wall()) <= LATE_S

    async def look(self, owner: Owner, document: Object) -> float | None:
        """Seconds until it is to be looked at again; None: when it has changed. Raises NotLeading,
        and ImError for what the cluster does not do."""
        spec = read(IdcSpec, document["spec"])
        if spec.paused and not owner.deleting:
            return LOOK_S if spec.role_certificate else None
        held = process.is_held(document)
        if held and not process.is_kept(spec):
            await self._hold(owner, spec, document, [])
            held = False
        else:
            await self.secure(owner, spec, document)
        if owner.deleting:
            return await self._empty(owner, spec, document) if held else None
        await self._ask(owner, spec, document.get("status", {}))
        return LOOK_S if spec.role_certificate else None

    async def _needs(self, owner: Owner, spec: IdcSpec) -> tuple[Region | None, Object]:
        """The Region (None: it is gone) and the Secret. Raises BadInput for what is of no use."""
        region = await needs.region_if_any(self._cluster, owner, spec.region)
        if region is None:
            return None, {}
        assert spec.role_certificate is not None
        return region, await needs.secret_of(self._cluster, owner, spec.role_certificate)

    async def secure(self, owner: Owner, spec: IdcSpec, document: Object) -> None:
        """Before a pod of it is made: one whose object goes at once would go with its clients."""
        if process.is_kept(spec) and not owner.deleting and not process.is_held(document):
            await self._hold(owner, spec, document, [process.FINALIZER])

    async def _hold(self, owner: Owner, spec: IdcSpec, document: Object, by: list[str]) -> None:
        await self._cluster.finalizers(document, by)
        self._held(owner.namespace, spec.region)

    # ------------------------------------------------------------------------ how it is

    async def _ask(self, owner: Owner, spec: IdcSpec, before: Object) -> None:
        if spec.role_certificate is None:
            if "process" in before:  # it could be asked once
                await self._write(owner, {})
            return
        said: Object = {"process": before["process"]} if "process" in before else {}
        holds, reason, message = True, "Answers", "its process answers"
        try:
            region, secret = await self._needs(owner, spec)
            if region is None:
                raise BadInput(f"Region {spec.region} is not in this namespace")
            answer = await self._peers.status(region, secret, spec.idc)
            said = {"process": process.process_of(answer, spec.idc).model_dump(mode="json")}
        except KeyError:
            holds, reason, message = False, "Unknown", f"Region {spec.region} has no {spec.idc}"
        except SILENT as error:
            holds, reason, message = False, "Silent", str(error)
        reachable = seen.condition(
            "Reachable", holds, reason, message, before, owner.generation, self._wall()
        )
        status = {**said, "conditions": [reachable]}
        differs = seen.differs(status, before) and self._is_due(owner, status, before)
        if differs:
            await self._write(owner, status)
            self._written[owner.namespace, owner.name] = self._wall()
        if holds:
            self._heard[owner.namespace, owner.name] = self._wall()
        else:
            self._heard.pop((owner.namespace, owner.name), None)
        if not differs:
            return
        old = [each for each in before.get("conditions", ()) if each["type"] == "Reachable"]
        if [each["status"] for each in old] != [reachable["status"]]:
            await self._tell(seen.event(owner, reason, message, self._wall(), not holds))

    def _is_due(self, owner: Owner, status: Object, before: Object) -> bool:
        """Whether a change is worth a write now: each is an event for all that stands beside it."""
        was = before.get("process", {}).get("applied", [])
        same = {**status.get("process", {}), "applied": was}
        if seen.differs({**status, "process": same}, before):
            return True
        at = self._written.get((owner.namespace, owner.name))
        return at is None or passed_s(at, self._wall()) >= APPLIED_S

    async def _write(self, owner: Owner, status: Object) -> None:
        await self._cluster.apply(seen.status_object(owner, status), status=True, manager=LOOKER)

    # ------------------------------------------------------------------------ its deletion

    async def _empty(self, owner: Owner, spec: IdcSpec, document: Object) -> float | None:
        try:
            why, goes = await self._drain(owner, spec)
        except SILENT as error:
            why, goes = process.unasked(str(error)), ""
        if not why:
            await self._hold(owner, spec, document, [])
            await self._tell(seen.event(owner, "LetGo", goes, self._wall(), False))
            return None
        before = document.get("status", {})
        if before.get("kept_by") != why:
            said = {"process": before["process"]} if "process" in before else {}
            reachable = [
                each for each in before.get("conditions", ()) if each["type"] == "Reachable"
            ]
            await self._write(owner, {**said, "conditions": reachable, "kept_by": why})
            await self._tell(seen.event(owner, "Kept", "; ".join(why), self._wall(), True))
        return LOOK_S

    async def _drain(self, owner: Owner, spec: IdcSpec) -> tuple[list[str], str]:
        """Why it cannot go yet; or nothing, and why it can. What would be refused is not asked for:
        it is tried again each time, and each time would stand in the audit log."""
        region, secret = await self._needs(owner, spec)
        if region is None:  # its namespace is given up, perhaps
            return [], f"Region {spec.region} is gone"
        change = process.drain_of(owner, spec)
        async with self._peers.steering(owner.namespace, region, secret) as control:
            policy = await control.policy()
            state = policy.state(spec.idc)
            if state in process.GOES:
                return [], f"{spec.idc} is {state}"
            if not control.permits(change):
                return [], f"the certificate in {spec.role_certificate} may not drain it"
            if why := process.kept_by(policy, spec, change.request_id):
                return why, ""
            decision = (await control.judge(change)).decision
            if decision.policy is not None:
                decision = await control.submit(change)
            if decision.policy is None:
                return process.refused(decision.blockers), ""
            return [f"{decision.operation} is running"], ""
