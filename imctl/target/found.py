"""One part of a region on Kubernetes, as its API server has it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from imctl.api.beside import BesidePhase
from imctl.api.model import Phase
from imctl.reconcile.objects import REGION_FILE, TEMPLATE
from imctl.reconcile.observed import Object
from imctl.target.base import Rolling

MANAGER = "imctl"


class Found(NamedTuple):
    """One part, as its API server has it. ``mark``: of its pod's region file; ``next_mark``: of
    that which the next pod would have; the same for ``template``, all settings of a pod."""

    part: str
    there: bool  # anything of it
    lives: bool  # a pod that is not told to end
    mark: str
    next_mark: str
    ends: int  # how often its container has ended, when it is not running now
    trouble: str
    template: str = ""
    next_template: str = ""
    current: bool = False  # the operator has made of its object what it says now
    gateways: tuple[str, ...] = ()  # pods that are not told to end
    grace_s: float = 0.0  # that its pod, and those of its gateways, have to end; 0: there is none

    def taken_up(self, mark: str) -> bool:
        """By the operator: its object, and the region file of this mark."""
        return self.current and self.next_mark == mark

    @property
    def is_new(self) -> bool:
        """Its pod, if there is one, is as the next one would be."""
        return self.mark == self.next_mark and self.template == self.next_template

    @property
    def outdated(self) -> bool:
        """Its pod waits to be replaced by one with other settings than a region file's."""
        return self.lives and self.mark == self.next_mark and self.template != self.next_template


def found_of(
    part: str,
    own: Object | None,
    pod: Object | None,
    made: Object | None,
    gateways: Sequence[Object] = (),
) -> Found:
    """``gateways``: pods."""
    status = (own or {}).get("status") or {}
    blocked = "; ".join(status.get("blocked_by", ()))
    says = [each.get("message", "") for each in status.get("conditions", ())]
    kept = "; ".join(status.get("kept_by", ()))
    trouble = kept or blocked or "; ".join(filter(None, says))
    if own is not None and not status:
        trouble = "no operator says anything of it; is one installed there (charts/im-operator)?"
    template = ((made or {}).get("spec") or {}).get("template", {}).get("metadata", {})
    next_notes = template.get("annotations", {})
    next_mark = next_notes.get(REGION_FILE, "")
    meta = (pod or {}).get("metadata", {})
    notes = meta.get("annotations", {})
    generation = (own or {}).get("metadata", {}).get("generation")
    current = bool(status) and status.get("observed_generation") == generation
    containers = ((pod or {}).get("status") or {}).get("containerStatuses", ())
    return Found(
        part,
        bool(own or pod or made or gateways),
        pod is not None and "deletionTimestamp" not in meta,
        notes.get(REGION_FILE, "") or next_mark,
        next_mark,
        max((int(each["restartCount"]) for each in containers if _is_down(each)), default=0),
        trouble,
        notes.get(TEMPLATE, "") or next_notes.get(TEMPLATE, ""),
        next_notes.get(TEMPLATE, ""),
        current and status.get("phase") not in (Phase.BLOCKED, Phase.PAUSED),
        tuple(
            each["metadata"]["name"]
            for each in gateways
            if "deletionTimestamp" not in each["metadata"]
        ),
        grace_s(gateways if pod is None else (pod, *gateways)),
    )


def grace_s(pods: Sequence[Object]) -> float:
    """Seconds until the last of them is killed, when all of them are told to end; 0: of none."""
    return max((float(each["spec"]["terminationGracePeriodSeconds"]) for each in pods), default=0)


def ours(document: Object | None) -> bool:
    """Whether `imctl` has applied this object, by what the API server says of it."""
    managed = (document or {}).get("metadata", {}).get("managedFields", ())
    return any(each.get("manager") == MANAGER for each in managed)


def rolling_of(own: Object | None, workload: Object | None, mark: str) -> Rolling | None:
    """Of the GatewayCluster and its StatefulSet. None: all is as wanted, or it is not ours to wait
    for. ``mark``: of the region file that its gateways are to have."""
    if own is None or not ours(own) or own["spec"].get("paused"):
        return None
    status = own.get("status") or {}
    steps = own["spec"].get("rollout", {})
    updated, more_s = str(status.get("updated", 0)), float(steps.get("min_ready_s", 0))
    if status.get("observed_generation") != own["metadata"].get("generation"):
        return Rolling("the operator has not seen what is wanted yet", "", more_s)
    if blocked := status.get("blocked_by"):
        return Rolling("; ".join(blocked), updated, more_s)
    template = ((workload or {}).get("spec") or {}).get("template", {}).get("metadata", {})
    if template.get("annotations", {}).get(REGION_FILE, "") != mark:
        return Rolling("they get the region file that is wanted", updated, more_s)
    if status.get("phase") == BesidePhase.SERVING:
        return None
    if rollout := status.get("rollout"):
        waits = f": {rollout['waiting_for']}" if rollout.get("waiting_for") else ""
        why = f"step {rollout['step']} of {rollout['of']} of new settings{waits}"
        return Rolling(why, updated, more_s)
    says = [each["message"] for each in status.get("conditions", ()) if each["status"] != "True"]
    return Rolling(says[0] if says else str(status.get("phase", "")), updated, more_s)


def _is_down(container: Object) -> bool:
    return "running" not in container.get("state", {})
