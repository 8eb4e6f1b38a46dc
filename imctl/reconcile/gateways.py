"""What is to be done about the gateways of an IDC, and what is said of them. Pure: the shell
applies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from imctl.api.beside import BesidePhase
from imctl.api.gateways import GatewayClusterSpec
from imctl.reconcile.beside import (
    EVERY,
    Around,
    Counts,
    Decision,
    counted,
    home_of,
    lacks,
    said,
)
from imctl.reconcile.gatewayobjects import Ends, Fronts, from_pod, objects
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.process import state_of
from imctl.reconcile.steps import Step, partition_of, step_of, template_of
from services.policy.document import IdcState


@dataclass(frozen=True, slots=True)
class Seen(Around):
    """``told``: by number, where clients find a gateway by what its pod was given."""

    told: Mapping[int, Ends] = field(default_factory=dict)
    step_clients: int | None = None  # as the status of the GatewayCluster has it
    rollout: Object | None = None  # the same
    held: bool = False  # their IDC is to be drained before it goes
    stay: bool = False  # that comes first, though they are deleted
    heard: bool = False  # the process of their IDC has just said what its status says of it


def decide(
    owner: Owner, spec: GatewayClusterSpec, seen: Seen, figures: Mapping[str, float]
) -> Decision:
    counts = counted(seen.workload)
    if owner.deleting:
        message = f"IDC {spec.idc} is drained first" if seen.stay else "its objects go with it"
        return _said(owner, seen, counts, BesidePhase.DELETING, message)
    if spec.paused:
        message = "the operator leaves it as it is (spec.paused)"
        return _said(owner, seen, counts, BesidePhase.PAUSED, message)
    home = home_of(spec.idc, seen)
    made = home if isinstance(home, str) else Fronts(owner, spec, *home)
    blocked = [made] if isinstance(made, str) else list(_lacks(made, seen))
    if isinstance(made, str) or blocked:
        return _said(owner, seen, counts, BesidePhase.BLOCKED, "; ".join(blocked), blocked)
    *others, workload = objects(made, figures, bool(seen.down_until), seen.told)
    step = step_of(
        spec.rollout, made.replicas, template_of(workload), seen.workload,
        _returning(seen), seen.step_clients, _unknown(spec, seen),
    )  # fmt: skip
    wanted = [*others, from_pod(workload, step.partition)]
    return _progress(made, seen, counts, step, wanted)


def _lacks(of: Fronts, seen: Seen) -> Iterator[str]:
    yield from lacks(of.spec.idc, of.idc, seen)
    bounds, room = of.spec.autoscaling, of.own.gateways
    wanted = bounds.max if bounds is not None else of.spec.replicas
    if wanted > room:
        field = "autoscaling.max" if bounds is not None else "replicas"
        yield (
            f"{field}: expected at most {room}, the `gateways` of {of.own.name} in Region "
            f"{of.idc.region}, got {wanted}"
        )


def _progress(of: Fronts, seen: Seen, counts: Counts, step: Step, made: list[Object]) -> Decision:
    wanted, kept = of.replicas, min(of.spec.rollout.keep, of.replicas)
    same = template_of(seen.workload) == template_of(made[-1])
    given = max(step.partition, partition_of(seen.workload)) <= kept and not step.waits
    rolled = counts.current and same and given and counts.updated >= wanted - kept
    before = seen.workload.get("status", {})
    revised = before.get("currentRevision") != before.get("updateRevision")
    under_way = seen.workload and not rolled and (not same or revised or not given)
    if seen.down_until:
        phase = BesidePhase.DOWN
        message = f"a drill keeps its IDC down, until {seen.down_until} at most"
    elif counts.ready >= wanted and counts.replicas == wanted and rolled:
        phase, message = BesidePhase.SERVING, f"{counts.ready} of {wanted} serve"
    elif under_way:
        number = min(step.partition + 1, wanted)
        message = f"gateway {number} of {wanted} gets the settings that are wanted"
        message += f": {step.waits}" if step.waits else ""
        phase = BesidePhase.ROLLING
    else:
        message = f"{counts.ready} of {wanted} serve"
        phase = BesidePhase.UNREADY if seen.served else BesidePhase.STARTING
    if seen.trouble and phase not in (BesidePhase.SERVING, BesidePhase.DOWN):
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
        counts.ready >= wanted and phase is not BesidePhase.DOWN, frozenset(keep),
    )  # fmt: skip
    if step.clients is not None:
        decision.status["step_clients"] = step.clients
    if under_way:
        decision.status["rollout"] = {
            "step": wanted - step.partition, "of": wanted - kept,
            "waiting_for": "; ".join(filter(None, (step.waits, seen.trouble))),
        }  # fmt: skip
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
    why = [
        f": {each['message']}"
        for each in seen.idc_status.get("conditions", ())
        if each["type"] == "Reachable" and each["status"] != "True"
    ]
    return f"how many clients IDC {spec.idc} has is not known{''.join(why)}"


def _said(
    owner: Owner,
    seen: Seen,
    counts: Counts,
    phase: BesidePhase,
    message: str,
    blocked: list[str] | None = None,
    apply: list[Object] | None = None,
    rolled: bool = False,
    ready: bool = False,
    keep: frozenset[tuple[str, str]] = frozenset(),
) -> Decision:
    """With ``apply`` the rollout is judged anew; else it is left as it is, with what it is measured
    by."""
    made = said(owner, counts, phase, message, blocked, apply, rolled, ready, keep)
    stands = seen.rollout and seen.rollout | {"waiting_for": message}
    kept = {} if apply else {"step_clients": seen.step_clients, "rollout": stands}
    more = {"connections": _clients(seen), **kept}
    known = {name: value for name, value in more.items() if value is not None}
    return made._replace(status=made.status | known)
