"""From Kubernetes' documents to what the operator decides by, and back to conditions and Events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from imctl.api.kinds import API_VERSION
from imctl.api.model import Phase
from imctl.reconcile.decide import Decision
from imctl.reconcile.moments import passed_s
from imctl.reconcile.objects import CORE_OF, DOWN_UNTIL, MANAGER, REGION_FILE, TEMPLATE
from imctl.reconcile.observed import Core, Object, Owner, Pod, Port

LATELY_S = 60.0  # another core takes over in less, and others declare failed an IDC that is away

_SERVED = (Phase.SERVING, Phase.UNREADY)
_WARNINGS = (Phase.BLOCKED, Phase.UNREADY, Phase.DOWN)


def owner_of(document: Object) -> Owner:
    metadata = document["metadata"]
    return Owner(
        document["kind"], metadata["namespace"], metadata["name"], metadata["uid"],
        metadata.get("generation", 0), "deletionTimestamp" in metadata,
    )  # fmt: skip


def pod_of(document: Object | None, before: Object) -> Pod | None:
    """``before``: the status as it was."""
    if document is None:
        return None
    status = document.get("status", {})
    ready = is_ready(status)
    notes = document["metadata"].get("annotations", {})
    return Pod(
        document["metadata"]["name"], ready, before.get("phase") in _SERVED,
        notes.get(TEMPLATE, ""), notes.get(REGION_FILE, ""), trouble_of(status),
        tuple(ports_of(document)), CORE_OF in document["metadata"].get("labels", {}),
        runs(document),
    )  # fmt: skip


def cores_of(documents: Iterable[Object], idc: str) -> tuple[Core, ...]:
    """The pods beside its own that have a core of this IDC object."""
    found = []
    for each in documents:
        labels, status = each["metadata"].get("labels", {}), each.get("status", {})
        component = labels.get("app.kubernetes.io/component")
        if labels.get(CORE_OF) == idc and component != "idc":
            found.append(Core(each["metadata"]["name"], runs(each), is_ready(status)))
    return tuple(found)


def runs(pod: Object) -> bool:
    """Whether its container does, and is not told to end."""
    containers = pod.get("status", {}).get("containerStatuses", ())
    running = [each for each in containers if "running" in each.get("state", {})]
    return bool(running) and "deletionTimestamp" not in pod["metadata"]


def is_ready(status: Object) -> bool:
    """``status``: of a pod."""
    return any(
        each["type"] == "Ready" and each["status"] == "True"
        for each in status.get("conditions", ())
    )


def ports_of(document: Object) -> Iterator[Port]:
    """Of our container: clusters may put others beside it."""
    own = document["metadata"].get("labels", {}).get("app.kubernetes.io/component")
    for container in document.get("spec", {}).get("containers", ()):
        for each in container.get("ports", ()) if container["name"] == own else ():
            yield each["name"], each["containerPort"], each.get("protocol", "TCP")


def served_lately(status: Object, now: str) -> bool:
    """Of an IDC object: by its condition Ready it serves, or has for a moment not done so. ``now``:
    RFC 3339."""
    for each in status.get("conditions", ()):
        if each["type"] == "Ready":
            return each["status"] == "True" or passed_s(each["lastTransitionTime"], now) < LATELY_S
    return False


def down_until(document: Object, now: str) -> str:
    """When a drill has to let the IDC up; empty where none keeps it down (any more). ``now``: RFC
    3339. Only who takes drills is kept down by them."""
    until = document["metadata"].get("annotations", {}).get(DOWN_UNTIL, "")
    if not until or not document["spec"].get("drills_from"):
        return ""
    try:
        return until if passed_s(now, until) > 0 else ""
    except (ValueError, TypeError):  # no time, or one without its zone
        return ""


def trouble_of(status: Object) -> str:
    """Why it does not run: of its place, or of its container."""
    for each in status.get("conditions", ()):
        if each["type"] == "PodScheduled" and each["status"] == "False":
            return f"no node for it: {each.get('message') or each.get('reason', '')}"
    for container in status.get("containerStatuses", ()):
        waits = container.get("state", {}).get("waiting", {})
        ended = container.get("lastState", {}).get("terminated") or {}
        if waits.get("reason") in (None, "ContainerCreating", "PodInitializing"):
            continue
        last = f", after it ended with {ended['exitCode']}" if "exitCode" in ended else ""
        return f"{container['name']}: {waits['reason']}{last}"
    return ""


def status_of(decision: Decision, before: Object, now: str) -> Object:
    """With its condition. ``now``: RFC 3339."""
    generation = decision.status["observed_generation"]
    ready = condition(
        "Ready", decision.ready, decision.reason, decision.message, before, generation, now
    )
    return {**decision.status, "conditions": [ready]}


def condition(
    kind: str,
    holds: bool | None,
    reason: str,
    message: str,
    before: Object,
    generation: int,
    now: str,
) -> Object:
    """It keeps the time at which it last changed. ``holds``: None: nobody knows. ``before``: the
    status as it was."""
    status = "Unknown" if holds is None else str(holds)
    old: Object = next((each for each in before.get("conditions", ()) if each["type"] == kind), {})
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": old["lastTransitionTime"] if old.get("status") == status else now,
        "observedGeneration": generation,
    }


def differs(status: Object, before: Object) -> bool:
    """From the same fields of a status as it was; another part of the operator writes others. An
    API server leaves nothing out of a status that was given to it."""
    kinds = {each["type"] for each in status.get("conditions", ())}
    old = [each for each in before.get("conditions", ()) if each["type"] in kinds]
    was = {**before, "conditions": old}
    return any(was.get(name) != value for name, value in status.items())


def status_object(owner: Owner, status: Object) -> Object:
    """To be applied. By its uid it is refused when another object has the name by then."""
    metadata = {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid}
    return {
        "apiVersion": API_VERSION, "kind": owner.kind, "metadata": metadata, "status": status,
    }  # fmt: skip


def event_of(owner: Owner, decision: Decision, before: Object, now: str) -> Object | None:
    """None where nothing has changed that is worth one."""
    changed = any(
        before.get(name) != decision.status[name] for name in ("phase", "blocked_by", "outdated")
    )
    warning = decision.reason in (*_WARNINGS, "Rejected")
    return event(owner, decision.reason, decision.message, now, warning) if changed else None


def event(owner: Owner, reason: str, message: str, now: str, warning: bool) -> Object:
    about: dict[str, Any] = {
        "apiVersion": API_VERSION, "kind": owner.kind, "namespace": owner.namespace,
        "name": owner.name, "uid": owner.uid,
    }  # fmt: skip
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{owner.name}.", "namespace": owner.namespace},
        "involvedObject": about,
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": message[:1000],
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "source": {"component": MANAGER},
    }
