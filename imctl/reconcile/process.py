"""What an IDC's process says, for its object's status; and whether the object may go. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from imctl.api.model import AppliedStatus, IdcSpec, LagStatus, ProcessStatus
from imctl.reconcile.moments import passed_s
from imctl.reconcile.observed import Owner
from services.control.rules import Blocker, Change, Kind
from services.policy.document import IdcState, Policy

FINALIZER = "imctl.dev/drain"
GOES = frozenset({IdcState.DRAINED, IdcState.FAILED, IdcState.RETIRED})
TOGETHER_S = 5.0
UNKNOWN = "unknown"  # the state of one that is in no policy
_LET_GO = "`spec.deletion: at_once` lets it go as it is"


def process_of(document: Mapping[str, Any], idc: str) -> ProcessStatus:
    """``document``: as docs/status.md has it."""
    policy = document.get("policy") or {}
    lags: dict[str, LagStatus] = {}
    for origin, lag in sorted((document.get("lag") or {}).items()):
        peer = origin.rpartition(".")[0]
        known = lags.get(peer, LagStatus(peer=peer, ms=0, records=0))
        # Of a peer's incarnations the last ones are behind the most, or all are behind nothing.
        lags[peer] = LagStatus(
            peer=peer,
            ms=max(known.ms, int(lag.get("ms") or 0)),
            records=known.records + int(lag.get("records") or 0),
        )
    return ProcessStatus(
        state=str(policy.get("idcs", {}).get(idc, {}).get("state", UNKNOWN)),
        epoch=int(policy.get("epoch") or 0),
        serving=bool(document.get("serving")),
        sessions=int(document.get("sessions") or 0),
        lag=list(lags.values()),
        applied=[
            AppliedStatus(origin=origin, lsns=[int(lsn) for lsn in lsns])
            for origin, lsns in sorted((document.get("applied") or {}).items())
        ],
        alarms=[str(each) for each in document.get("alarms", ())],
    )


def state_of(status: Mapping[str, Any]) -> str:
    """Of an IDC object's status; empty: not known."""
    state = str(status.get("process", {}).get("state", ""))
    return "" if state == UNKNOWN else state


# ---------------------------------------------------------------------------- its deletion


def is_held(document: Mapping[str, Any]) -> bool:
    """Whether an object stays until its IDC is empty: an IDC, its gateways, its Region."""
    return FINALIZER in document["metadata"].get("finalizers", ())


def is_kept(spec: IdcSpec) -> bool:
    """Whether its object stays until the IDC is empty."""
    return spec.role_certificate is not None and spec.deletion == "drain"


def keeps_gateways(idc: Mapping[str, Any] | None, deleted: str, now: str) -> bool:
    """Whether gateways that were ``deleted`` stay until their IDC is drained. ``idc``: its object.
    Times: RFC 3339. What is deleted together comes one by one, the IDC perhaps last."""
    if idc is None or not is_held(idc):
        return False
    return "deletionTimestamp" in idc["metadata"] or passed_s(deleted, now) < TOGETHER_S


def drain_of(owner: Owner, spec: IdcSpec) -> Change:
    """One a lifetime of the object: a drain that people have taken back is not begun again."""
    by = f"the deletion of IDC {owner.namespace}/{owner.name}"
    return Change(Kind.DRAIN, spec.idc, f"{owner.uid}-deletion", by)


def kept_by(policy: Policy, spec: IdcSpec, request_id: str) -> list[str]:
    """Why it cannot go yet, where nothing need be asked for; empty: ask for its drain."""
    state, done = policy.state(spec.idc), policy.outcome(request_id)
    running = policy.operation
    if state is IdcState.DRAINING and running is not None:
        return [f"{running.id} is {running.state}"]
    if done is not None:
        said = f"{done.operation} is over, and {spec.idc} is {state}"
        return [f"{said}: drain it by `imctl drain {spec.idc}`, or {_LET_GO}"]
    return []


def refused(blockers: Iterable[Blocker]) -> list[str]:
    return [*(f"{each.rule}: {each.sentence}" for each in blockers), _LET_GO]


def unasked(why: str) -> list[str]:
    return [why, _LET_GO]
