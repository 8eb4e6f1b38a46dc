"""Shows regions at work: how far their IDCs lag, and which policy is served where. Where a
Replication asks for it, what copies into an IDC is run too (``mirrors``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.api.kinds import GEO_POLICY, REPLICATION
from imctl.api.views import (
    FlowStatus,
    GeoPolicySpec,
    GeoPolicyStatus,
    IdcPolicy,
    ReplicationSpec,
    ReplicationStatus,
)
from imctl.reconcile import needs, seen
from imctl.reconcile.applied import Applied
from imctl.reconcile.cluster import Cluster, read
from imctl.reconcile.mirrors import Mirrors, Standing
from imctl.reconcile.observed import Object, Owner, Tell
from imctl.reconcile.peers import SILENT, Peers
from imctl.reconcile.process import process_of
from imctl.statusview import newest_policy

LOOK_S = 5.0
MIRRORED = "Mirrored"
JUDGED = {REPLICATION.name: "WithinObjective", GEO_POLICY.name: "Served"}  # conditions
BUILTIN, MIRRORMAKER2 = "builtin", "mirrormaker2"

Answers = Mapping[str, dict[str, Any] | str]  # by IDC: its status document, or why there is none


class Views:
    """``wall``: the time of day, RFC 3339. ``tell``: keeps an Event."""

    def __init__(self, cluster: Cluster, peers: Peers, wall: Callable[[], str], tell: Tell) -> None:
        self._cluster = cluster
        self._peers = peers
        self._mirrors = Mirrors(cluster)
        self._wall = wall
        self._tell = tell

    async def look(self, owner: Owner, document: Object, applied: Applied) -> float | None:
        """Seconds until it is to be looked at again; None: never. ``applied``: of what was made for
        it. Raises ImError for what the cluster does not do."""
        if owner.deleting:
            return None
        is_replication = owner.kind == REPLICATION.name
        kind: type[ReplicationSpec] | type[GeoPolicySpec]
        kind = ReplicationSpec if is_replication else GeoPolicySpec
        spec: ReplicationSpec | GeoPolicySpec = read(kind, document["spec"])
        before, looked = document.get("status", {}), False
        mirror = _said_of_mirror(before)
        try:
            region = await needs.region_of(self._cluster, owner, spec.region)
            if isinstance(spec, ReplicationSpec):
                standing = await self._mirrors.bring(owner, spec.mirror, region, applied)
                mirror, looked = self._of_mirror(standing, owner, before), True
            answers = await self._ask(owner, spec, region)
        except BadInput as error:
            blocked: Object = {
                "blocked_by": [str(error)], "observed_generation": owner.generation,
            }  # fmt: skip
            # What they said last stays, and what was made of it holds no longer for sure.
            others = {name: part for name, part in before.items() if name != "mirror"}
            if "conditions" in mirror and not looked:
                mirror = mirror | {"conditions": [self._unknown(MIRRORED, owner, error, before)]}
            judged = [self._unknown(JUDGED[owner.kind], owner, error, before)]
            await self._say(owner, _joined(others | blocked, judged, mirror), before)
            return LOOK_S
        said: ReplicationStatus | GeoPolicyStatus
        if isinstance(spec, ReplicationSpec):
            said, why = replication(spec, region, answers)
        else:
            said, why = geo_policy(region, answers)
        status: Object = said.model_dump(mode="json", exclude_none=True)
        status["observed_generation"] = owner.generation
        held = seen.condition(
            JUDGED[owner.kind], not why, "Late" if why else "Holds", why or "all of it", before,
            owner.generation, self._wall(),
        )  # fmt: skip
        await self._say(owner, _joined(status, [held], mirror), before)
        return LOOK_S

    def _unknown(self, kind: str, owner: Owner, error: BadInput, before: Object) -> Object:
        """A condition that cannot be judged now."""
        return seen.condition(
            kind, None, "Blocked", str(error), before, owner.generation, self._wall()
        )

    def _of_mirror(self, standing: Standing | None, owner: Owner, before: Object) -> Object:
        """Its part of the status."""
        if standing is None:
            return {}
        condition = seen.condition(
            MIRRORED, standing.ready, standing.reason, standing.message, before,
            owner.generation, self._wall(),
        )  # fmt: skip
        return {"conditions": [condition]} | ({"mirror": standing.name} if standing.name else {})

    async def _ask(
        self, owner: Owner, spec: ReplicationSpec | GeoPolicySpec, region: Region
    ) -> Answers:
        """Raises BadInput for what is not there (yet)."""
        secret = await needs.secret_of(self._cluster, owner, spec.certificate)

        async def one(idc: str) -> dict[str, Any] | str:
            try:
                return await self._peers.status(region, secret, idc)
            except SILENT as error:
                return str(error)

        names = [idc.name for idc in region.spec.idcs]
        answers = await asyncio.gather(*(one(name) for name in names))
        return dict(zip(names, answers, strict=True))

    async def _say(self, owner: Owner, status: Object, before: Object) -> None:
        """What is no longer so is not said any more: an apply leaves out what it does not name."""
        if status == before:
            return
        await self._cluster.apply(seen.status_object(owner, status), status=True)
        was = {each["type"]: each["status"] for each in before.get("conditions", ())}
        for each in status.get("conditions", ()):
            if was.get(each["type"]) != each["status"]:
                warning = each["status"] != "True"
                event = seen.event(owner, each["reason"], each["message"], self._wall(), warning)
                await self._tell(event)


# ------------------------------------------------------------------------------------- pure


def _said_of_mirror(before: Object) -> Object:
    conditions = [each for each in before.get("conditions", ()) if each["type"] == MIRRORED]
    named = {"mirror": before["mirror"]} if "mirror" in before else {}
    return named | ({"conditions": conditions} if conditions else {})


def _joined(status: Object, judged: list[Object], mirror: Object) -> Object:
    """``judged``: conditions besides the mirror's."""
    conditions = [*judged, *mirror.get("conditions", ())]
    return {**status, **mirror} | ({"conditions": conditions} if conditions else {})


def replication(
    spec: ReplicationSpec, region: Region, answers: Answers
) -> tuple[ReplicationStatus, str]:
    """And what keeps it from its objective; empty: nothing."""
    flows, silent = [], []
    for idc in region.spec.idcs:
        answer = answers[idc.name]
        if isinstance(answer, str):
            silent.append(f"{idc.name}: {answer}")
            continue
        engine = MIRRORMAKER2 if idc.engines.mirror.mirrormaker2 else BUILTIN
        flows += [
            FlowStatus(
                source=lag.peer,
                target=idc.name,
                engine=engine,
                lag_ms=lag.ms,
                records=lag.records,
            )
            for lag in process_of(answer, idc.name).lag
        ]
    late = [
        f"{flow.source} -> {flow.target} lags {flow.lag_ms} ms, at most {spec.lag_slo_ms} are meant"
        for flow in flows
        if flow.lag_ms > spec.lag_slo_ms
    ]
    status = ReplicationStatus(
        flows=flows, silent=silent, worst_lag_ms=max((flow.lag_ms for flow in flows), default=None)
    )
    return status, "; ".join([*late, *silent])


def geo_policy(region: Region, answers: Answers) -> tuple[GeoPolicyStatus, str]:
    """And what keeps the newest policy from being served everywhere; empty: nothing."""
    documents = {idc: one for idc, one in answers.items() if not isinstance(one, str)}
    policy = newest_policy(documents.values())
    rows = policy.get("idcs") or {}
    idcs, behind = [], []
    newest = int(policy["epoch"]) if policy.get("epoch") is not None else None
    for name, answer in answers.items():
        row = rows.get(name) or {}
        own: dict[str, Any] = {}
        if isinstance(answer, str):
            behind.append(f"{name}: {answer}")
        else:
            own = answer.get("policy") or {}
            if own.get("epoch") != newest or own.get("stale"):
                stale = ", and no majority confirms it" if own.get("stale") else ""
                behind.append(f"{name} serves epoch {own.get('epoch')} of {newest}{stale}")
        idcs.append(
            IdcPolicy(
                idc=name, state=str(row.get("state", "unknown")), ramp=int(row.get("ramp") or 0),
                epoch=own.get("epoch"), stale=bool(own.get("stale")),
            )
        )  # fmt: skip
    operation = str(policy.get("operation") or "")
    status = GeoPolicyStatus(epoch=newest, operation=operation, idcs=idcs)
    return status, "; ".join(behind)
