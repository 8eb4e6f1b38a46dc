"""What is decided alike for all kinds whose pods stand beside an IDC's own. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from imcore.region.model import Region
from imctl.api.beside import BesidePhase
from imctl.api.model import IdcSpec, Phase
from imctl.reconcile.besideobjects import selector_of
from imctl.reconcile.decide import judge_region
from imctl.reconcile.observed import Object, Owner

EVERY = ""


@dataclass(frozen=True, slots=True)
class Around:
    """``idc``: its object, None: it is not there; ``region``: spec of the Region that it names;
    ``workload``: what makes the pods; ``pods``: by name, the region file that each was given;
    ``trouble``: of one of them, in a sentence."""

    idc: IdcSpec | None = None
    idc_status: Object = field(default_factory=dict)
    region: Object | None = None
    workload: Object = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)
    trouble: str = ""
    served: bool = False  # all that are wanted since the spec has last changed
    down_until: str = ""  # RFC 3339; until then at most a drill keeps their IDC down; empty: none


class Decision(NamedTuple):
    apply: list[Object]  # in this order
    status: Object
    ready: bool
    rolled: bool
    reason: str
    message: str
    # Kind and name of what stays, or EVERY of its kind; what is ours and else can go.
    keep: frozenset[tuple[str, str]]
    stop: bool = False  # no pod of it may run, though nothing else is known


class Counts(NamedTuple):
    replicas: int
    ready: int
    updated: int
    current: bool  # these are of the workload as it is wanted


def counted(workload: Object) -> Counts:
    status = workload.get("status", {})
    current = status.get("observedGeneration") == workload.get("metadata", {}).get("generation")
    return Counts(
        status.get("replicas", 0), status.get("readyReplicas", 0),
        status.get("updatedReplicas", 0), current,
    )  # fmt: skip


def home_of(name: str, seen: Around) -> tuple[IdcSpec, Region] | str:
    """The IDC of this object's name, with the region that has it; or what is missing for knowing
    more."""
    if seen.idc is None:
        return f"IDC {name} is not in this namespace"
    if seen.region is None:
        return f"Region {seen.idc.region} is not in this namespace"
    region, problems = judge_region(seen.idc.region, seen.region)
    if region is None:
        return f"Region {seen.idc.region} is not valid: {problems[0]}"
    if seen.idc.idc not in {each.name for each in region.spec.idcs}:
        return f"Region {seen.idc.region} has no {seen.idc.idc}"
    return seen.idc, region


def lacks(name: str, idc: IdcSpec, seen: Around) -> Iterator[str]:
    """What is wrong with an IDC for what serves its clients beside it."""
    if idc.gateways != "apart":
        yield f"IDC {name} runs its own gateways: say `gateways: apart` there"
    yield from is_blocked(name, seen)


def is_blocked(name: str, seen: Around) -> Iterator[str]:
    if seen.idc_status.get("phase") == str(Phase.BLOCKED):
        for why in seen.idc_status.get("blocked_by", ()):
            yield f"IDC {name} is blocked: {why}"


def said(
    owner: Owner,
    counts: Counts,
    phase: BesidePhase,
    message: str,
    blocked: list[str] | None = None,
    apply: list[Object] | None = None,
    rolled: bool = False,
    ready: bool = False,
    keep: frozenset[tuple[str, str]] = frozenset(),
) -> Decision:
    status: dict[str, Any] = {
        "phase": str(phase),
        "replicas": counts.replicas,
        "ready": counts.ready,
        "updated": counts.updated,
        "selector": selector_of(owner),
        "blocked_by": blocked or [],
        "observed_generation": owner.generation,
    }
    return Decision(apply or [], status, ready, rolled, str(phase), message, keep)


def rejected(decision: Decision, why: str) -> Decision:
    """By the API server, with what was to be applied."""
    status = {**decision.status, "phase": str(BesidePhase.BLOCKED), "blocked_by": [why]}
    return decision._replace(status=status, ready=False, reason="Rejected", message=why)
