"""One part of a region on Kubernetes, as its API server has it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from imctl.reconcile.objects import REGION_FILE
from imctl.reconcile.observed import Object


class Found(NamedTuple):
    """One part, as its API server has it. ``mark``: of its pod's region file; ``next_mark``: of
    that which the next pod would have."""

    part: str
    there: bool  # anything of it
    lives: bool  # a pod that is not told to end
    mark: str
    next_mark: str
    ends: int  # how often its container has ended, when it is not running now
    trouble: str


def found_of(part: str, own: Object | None, pod: Object | None, made: Object | None) -> Found:
    status = (own or {}).get("status") or {}
    blocked = "; ".join(status.get("blocked_by", ()))
    says = [each.get("message", "") for each in status.get("conditions", ())]
    trouble = blocked or "; ".join(filter(None, says))
    if own is not None and not status:
        trouble = "no operator says anything of it; is one installed there (charts/im-operator)?"
    template = ((made or {}).get("spec") or {}).get("template", {}).get("metadata", {})
    next_mark = template.get("annotations", {}).get(REGION_FILE, "")
    meta = (pod or {}).get("metadata", {})
    containers = ((pod or {}).get("status") or {}).get("containerStatuses", ())
    return Found(
        part,
        bool(own or pod or made),
        pod is not None and "deletionTimestamp" not in meta,
        meta.get("annotations", {}).get(REGION_FILE, "") or next_mark,
        next_mark,
        max((int(each["restartCount"]) for each in containers if _is_down(each)), default=0),
        trouble,
    )


def _is_down(container: Object) -> bool:
    return "running" not in container.get("state", {})
