"""What is to be done about the route instances of an IDC, and what is said of them. Pure: the shell
applies."""

from __future__ import annotations

from collections.abc import Mapping

from imctl.api.beside import BesidePhase
from imctl.api.routes import RouteClusterSpec
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
from imctl.reconcile.besideobjects import workload_of
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.routeobjects import Routes, objects
from imctl.reconcile.steps import template_of


def decide(
    owner: Owner, spec: RouteClusterSpec, seen: Around, figures: Mapping[str, float]
) -> Decision:
    counts = counted(seen.workload)
    if owner.deleting:
        return said(owner, counts, BesidePhase.DELETING, "its objects go with it")
    if spec.paused:
        message = "the operator leaves it as it is (spec.paused)"
        return said(owner, counts, BesidePhase.PAUSED, message)
    home = home_of(spec.idc, seen)
    blocked = [home] if isinstance(home, str) else list(lacks(spec.idc, home[0], seen))
    if isinstance(home, str) or blocked:
        return said(owner, counts, BesidePhase.BLOCKED, "; ".join(blocked), blocked)
    of = Routes(owner, spec, *home)
    return _progress(of, seen, counts, objects(of, figures, bool(seen.down_until)))


def _progress(of: Routes, seen: Around, counts: Counts, made: list[Object]) -> Decision:
    wanted, same = of.replicas, template_of(seen.workload) == template_of(made[-1])
    # Those with former settings, as long as there are some, are more than are wanted.
    rolled = counts.current and same and counts.updated >= counts.replicas
    if seen.down_until:
        phase = BesidePhase.DOWN
        message = f"a drill keeps its IDC down, until {seen.down_until} at most"
    elif counts.ready >= wanted and counts.replicas == wanted and rolled:
        phase, message = BesidePhase.SERVING, f"{counts.ready} of {wanted} serve"
    elif seen.workload and not (rolled and counts.current):
        phase = BesidePhase.ROLLING
        updated = counts.updated if same and counts.current else 0
        message = f"{updated} of {wanted} have the settings that are wanted"
    else:
        message = f"{counts.ready} of {wanted} serve"
        phase = BesidePhase.UNREADY if seen.served else BesidePhase.STARTING
    trouble = seen.trouble or _refused(seen.workload)
    if trouble and phase not in (BesidePhase.SERVING, BesidePhase.DOWN):
        message += f"; {trouble}"
    base = workload_of(of.owner)
    keep = {(each["kind"], each["metadata"]["name"]) for each in made}
    keep |= {("ConfigMap", f"{base}-region-{each}") for each in seen.pods.values() if each}
    if not rolled:  # one with former settings may be made again
        keep.add(("ConfigMap", EVERY))
    ready = counts.ready >= wanted and phase is not BesidePhase.DOWN
    return said(of.owner, counts, phase, message, [], made, rolled, ready, frozenset(keep))


def _refused(workload: Object) -> str:
    """Why the cluster makes no pod at all, such as a quota; empty: it does."""
    for each in workload.get("status", {}).get("conditions", ()):
        if each["type"] == "ReplicaFailure" and each["status"] == "True":
            return str(each.get("message") or each.get("reason", ""))
    return ""
