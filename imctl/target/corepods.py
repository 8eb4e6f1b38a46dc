"""New settings for the cores beside an IDC's own: none of them is ready but the one that serves, so
no controller replaces them one by one, and whoever changes them does."""

from __future__ import annotations

import asyncio
import time

from imctl.api.beside import BesidePhase
from imctl.api.kinds import API_VERSION, IDC, IM_CLUSTER
from imctl.errors import Failed
from imctl.reconcile import seen
from imctl.reconcile.besideobjects import selector_of, workload_of
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.objects import REGION_FILE, TEMPLATE
from imctl.reconcile.observed import Object
from imctl.target.found import grace_s

TAKES_UP_S = 60.0  # the operator, what is wanted
POD_S = 60.0  # a new pod, after the old one has had its time to end
POLL_S = 0.5
_LEFT_ALONE = (BesidePhase.BLOCKED, BesidePhase.PAUSED, BesidePhase.DOWN)


async def renew(cluster: Cluster, namespace: str, idc: str) -> None:
    """One after the other; one that serves hands over to another. Where the operator leaves them
    as they are, so does this. Raises Failed."""
    deadline = time.monotonic() + TAKES_UP_S
    while True:
        own = await cluster.get(API_VERSION, IM_CLUSTER.name, namespace, idc)
        if own is None or own["spec"].get("paused"):
            return
        owner = seen.owner_of(own)
        made = await cluster.get("apps/v1", "StatefulSet", namespace, workload_of(owner))
        if await _taken_up(cluster, namespace, own, made):
            break
        if time.monotonic() > deadline:
            raise Failed(f"the operator has not taken up IMCluster {idc}")
        await asyncio.sleep(POLL_S)
    if own["status"]["phase"] in _LEFT_ALONE or made is None:
        return
    wanted = _notes(made["spec"]["template"]).get(TEMPLATE)
    pods = await cluster.list("v1", "Pod", namespace, selector_of(owner))
    for pod in sorted(pods, key=lambda each: str(each["metadata"]["name"])):
        if _notes(pod).get(TEMPLATE) != wanted:
            await _replace(cluster, pod)


async def _taken_up(cluster: Cluster, namespace: str, own: Object, made: Object | None) -> bool:
    """Whether its pods are wanted as it, its IDC object and the Region say now."""
    idc = await cluster.get(API_VERSION, IDC.name, namespace, own["spec"]["idc"])
    status = own.get("status") or {}
    about = (status.get("observed_generation"), status.get("idc_generation"))
    if about != tuple(
        ((each or {}).get("metadata") or {}).get("generation") for each in (own, idc)
    ):
        return False
    if status["phase"] in _LEFT_ALONE:
        return True
    core = await cluster.get("apps/v1", "StatefulSet", namespace, f"{own['spec']['idc']}-idc")
    marks = [_notes((each or {}).get("spec", {}).get("template", {})) for each in (made, core)]
    return len({each.get(REGION_FILE) for each in marks}) == 1


async def _replace(cluster: Cluster, pod: Object) -> None:
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    await cluster.delete("v1", "Pod", namespace, name)
    deadline = time.monotonic() + POD_S + grace_s([pod])
    while True:
        found = await cluster.get("v1", "Pod", namespace, name)
        another = found is not None and found["metadata"].get("uid") != pod["metadata"].get("uid")
        if found is not None and another and seen.runs(found):
            return
        if time.monotonic() > deadline:
            trouble = seen.trouble_of((found or {}).get("status", {}))
            raise Failed(f"{name} does not run again: {trouble or 'nothing is said of it'}")
        await asyncio.sleep(POLL_S)


def _notes(document: Object) -> dict[str, str]:
    found: dict[str, str] = document.get("metadata", {}).get("annotations", {})
    return found
