"""What is to be done about the gateways of an IDC, and what is said of them. Pure: the shell
applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from imctl.api.gateways import GatewayClusterSpec, GatewayPhase
from imctl.api.model import IdcSpec, Phase
from imctl.reconcile.decide import judge_region
from imctl.reconcile.gatewayobjects import Ends, Fronts, from_pod, objects, selector_of
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.process import state_of
from imctl.reconcile.steps import Step, step_of, template_of
from services.policy.document import IdcState

EVERY = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """``idc``: its object, None: it is not there; ``region``: spec of the Region that it names;
    ``workload``: the StatefulSet; ``pods``: by name, the region file that each was given;
    ``told``: by number, where clients find a gateway by that; ``trouble``: of one of them, in a
    sentence."""

    idc: IdcSpec | None = None
    idc_status: Object = field(default_factory=dict)
    region: Object | None = None
    workload: Object = field(default_factory=dict)
    pods: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[int, Ends] = field(default_factory=dict)
    trouble: str = ""
    served: bool = False  # all that are wanted since the spec has last changed
    step_clients: int | None = None  # as the status of the GatewayCluster has it
    down_until: str = ""  # RFC 3339; until then at most a drill keeps their IDC down; empty: none
    held: bool = False  # their IDC is to be drained before it goes
    stay: bool = False  # that comes first, though they are deleted
    heard: bool = False  # the process of their IDC has just said what its status says of it


class Decision(NamedTuple):
    apply: list[Object]  # in this order
    status: Object
    ready: bool
    rolled: bool
    reason: str
    message: str
    # Kind and name of what stays, or EVERY of its kind; what is ours and else can go.
    keep: frozenset[tuple[str, str]]


class _Counts(NamedTuple):
    replicas: int
    ready: int
    updated: int
    current: bool  # these are of the StatefulSet as it is wanted


def decide(
    owner: Owner, spec: GatewayClusterSpec, seen: Seen, figures: Mapping[str, float]
) -> Decision:
    counts = _counted(seen.workload)
    if owner.deleting:
        message = f"IDC {spec.idc} is drained first" if seen.stay else "its objects go with it"
        return _said(owner, seen, counts, GatewayPhase.DELETING, message)
    if spec.paused:
        message = "the operator leaves it as it is (spec.paused)"
        return _said(owner, seen, counts, GatewayPhase.PAUSED, message)
    made = _fronts(owner, spec, seen)
    blocked = [made] if isinstance(made, str) else list(_lacks(made, seen))
    if isinstance(made, str) or blocked:
        return _said(owner, seen, counts, GatewayPhase.BLOCKED, "; ".join(blocked), blocked)
    *others, workload = objects(made, figures, bool(seen.down_until), seen.told)
    step = step_of(
        spec.rollout, made.replicas, template_of(workload), seen.workload,
        _returning(seen), seen.step_clients, _unknown(spec, seen),
    )  # fmt: skip
    wanted = [*others, from_pod(workload, step.partition)]
    return _progress(made, seen, counts, step, wanted)


def _fronts(owner: Owner, spec: GatewayClusterSpec, seen: Seen) -> Fronts | str:
    """Or what is missing for knowing more."""
    if seen.idc is None:
        return f"IDC {spec.idc} is not in this namespace"
    if seen.region is None:
        return f"Region {seen.idc.region} is not in this namespace"
    region, problems = judge_region(seen.idc.region, seen.region)
    if region is None:
        return f"Region {seen.idc.region} is not valid: {problems[0]}"
    if seen.idc.idc not in {each.name for each in region.spec.idcs}:
        return f"Region {seen.idc.region} has no {seen.idc.idc}"
    return Fronts(owner, spec, seen.idc, region)


def _lacks(of: Fronts, seen: Seen) -> Iterator[str]:
    name, room = of.spec.idc, of.own.gateways
    if of.idc.gateways != "apart":
        yield f"IDC {name} runs its own gateways: say `gateways: apart` there"
    for why in seen.idc_status.get("blocked_by", ()) if _is_blocked(seen) else ():
        yield f"IDC {name} is blocked: {why}"
    bounds = of.spec.autoscaling
    wanted = bounds.max if bounds is not None else of.spec.replicas
    if wanted > room:
        field = "autoscaling.max" if bounds is not None else "replicas"
        yield (
            f"{field}: expected at most {room}, the `gateways` of {of.own.name} in Region "
            f"{of.idc.region}, got {wanted}"
        )


def _is_blocked(seen: Seen) -> bool:
    return bool(seen.idc_status.get("phase") == str(Phase.BLOCKED))


def _counted(workload: Object) -> _Counts:
    status = workload.get("status", {})
    current = status.get("observedGeneration") == workload.get("metadata", {}).get("generation")
    return _Counts(
        status.get("replicas", 0), status.get("readyReplicas", 0),
        status.get("updatedReplicas", 0), current,
    )  # fmt: skip


def _progress(of: Fronts, seen: Seen, counts: _Counts, step: Step, made: list[Object]) -> Decision:
    wanted, kept = of.replicas, min(of.spec.rollout.keep, of.replicas)
    same = template_of(seen.workload) == template_of(made[-1])
    rolled = counts.current and same and step.partition <= kept and counts.updated >= wanted - kept
    before = seen.workload.get("status", {})
    revised = before.get("currentRevision") != before.get("updateRevision")
    if seen.down_until:
        phase = GatewayPhase.DOWN
        message = f"a drill keeps its IDC down, until {seen.down_until} at most"
    elif counts.ready >= wanted and counts.replicas == wanted and rolled:
        phase, message = GatewayPhase.SERVING, f"{counts.ready} of {wanted} serve"
    elif seen.workload and not rolled and (not same or revised or step.partition > kept):
        number = min(step.partition + 1, wanted)
        message = f"gateway {number} of {wanted} gets the settings that are wanted"
        message += f": {step.waits}" if step.waits else ""
        phase = GatewayPhase.ROLLING
    else:
        message = f"{counts.ready} of {wanted} serve"
        phase = GatewayPhase.UNREADY if seen.served else GatewayPhase.STARTING
    if seen.trouble and phase not in (GatewayPhase.SERVING, GatewayPhase.DOWN):
        message += f"; {seen.trouble}"
    files = {f"{of.base}-region-{each}" for each in seen.pods.values() if each}
    keep = {(each["kind"], each["metadata"]["name"]) for each in made}
    keep |= {("ConfigMap", name) for name in files}
    if revised or step.partition > 0:  # one that is away comes back with what it had
        keep.add(("ConfigMap", EVERY))
    # The Service of one that goes leads to it until it is gone.
    keep |= {("Service", name) for name in seen.pods}
    decision = _said(
        of.owner, seen, counts, phase, message, [], made, rolled,
        counts.ready >= wanted and phase is not GatewayPhase.DOWN, frozenset(keep),
    )  # fmt: skip
    if step.clients is not None:
        decision.status["step_clients"] = step.clients
    return decision


def _clients(seen: Seen) -> int | None:
    """Of the IDC, as its process last said; None: it is not asked."""
    sessions = (seen.idc_status.get("process") or {}).get("sessions")
    return None if sessions is None else int(sessions)


def _returning(seen: Seen) -> int | None:
    """Of those that a step waits for; None: of nobody. Only to an active IDC do they come back, and
    a drained one may be given them after its gateways alone, as by `imctl deploy`: a count that a
    look took before the drain would be waited for without end."""
    return _clients(seen) if state_of(seen.idc_status) == IdcState.ACTIVE else None


def _unknown(spec: GatewayClusterSpec, seen: Seen) -> str:
    """Why it is not known how many clients the IDC has, where that can be known and is waited
    for."""
    if seen.idc is None or seen.idc.role_certificate is None or not spec.rollout.reconnected:
        return ""
    if seen.heard and state_of(seen.idc_status):
        return ""
    said = [
        f": {each['message']}"
        for each in seen.idc_status.get("conditions", ())
        if each["type"] == "Reachable" and each["status"] != "True"
    ]
    return f"how many clients IDC {spec.idc} has is not known{''.join(said)}"


def _said(
    owner: Owner,
    seen: Seen,
    counts: _Counts,
    phase: GatewayPhase,
    message: str,
    blocked: list[str] | None = None,
    apply: list[Object] | None = None,
    rolled: bool = False,
    ready: bool = False,
    keep: frozenset[tuple[str, str]] = frozenset(),
) -> Decision:
    clients = _clients(seen)
    status: dict[str, Any] = {
        "phase": str(phase),
        "replicas": counts.replicas,
        "ready": counts.ready,
        "updated": counts.updated,
        "selector": selector_of(owner),
        "blocked_by": blocked or [],
        "observed_generation": owner.generation,
    }
    if clients is not None:
        status["connections"] = clients
    return Decision(apply or [], status, ready, rolled, str(phase), message, keep)
