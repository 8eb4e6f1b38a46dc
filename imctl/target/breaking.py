"""What drills do to the pods of an IDC, those beside its own among them: kill them and keep them
away, empty its volume."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from imcore.errors import ImError
from imctl.api.kinds import API_VERSION
from imctl.errors import Failed
from imctl.reconcile.besideobjects import BESIDE, selector_of, workload_of
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.observed import Object, Owner
from imctl.reconcile.seen import owner_of, trouble_of
from imctl.target import calls

MANAGER = "imctl-drill"  # of the marks that keep IDCs down
KILL = ("sh", "-c", "kill -9 -1")  # all that runs in the pod, but this shell
KILLED_S = 5.0  # a kubelet, what has ended
DOWN_S = 20.0  # the operator, a pod that is not wanted for now
RUN_S = 90.0
GONE_S = 60.0  # a pod that is told to end
POLL_S = 0.5


async def take_down(cluster: Cluster, namespace: str, own: str, marked: Object) -> None:
    """``own``: the IDC's StatefulSet; ``marked``: its object, with the mark that keeps it down.
    Raises Failed."""
    idc = marked["metadata"]["name"]
    beside = [owner_of(each) for each in await _beside(cluster, namespace, idc)]
    # Killed before anything is marked: who is told to end says farewell.
    for pod, why in (await _kill(cluster, namespace, f"{own}-0", beside)).items():
        if why:
            raise Failed(f"the pod {pod} of {idc} was not killed: {why}")
    await cluster.apply(marked, manager=MANAGER)
    deadline = time.monotonic() + DOWN_S
    made = [(BESIDE[each.kind].workload, workload_of(each)) for each in beside]
    for kind, workload in (("StatefulSet", own), *made):
        while (await calls.replicas(cluster, namespace, kind, workload)) > 0:
            if time.monotonic() > deadline:
                raise Failed(f"no operator takes {workload} of {idc} down; it is marked")
            await asyncio.sleep(POLL_S / 5)
    # The kubelet has started them again at once; after this time it waits for 10 s.
    await _kill(cluster, namespace, f"{own}-0", beside, KILLED_S / 5)
    for each in (f"{own}-0", *await _pods(cluster, namespace, beside)):
        await cluster.delete("v1", "Pod", namespace, each, at_once=True)


async def all_serve(cluster: Cluster, namespace: str, idc: str) -> bool:
    """Whether all that it has in pods beside its own are there."""
    for each in await _beside(cluster, namespace, idc):
        owner = owner_of(each)
        pods = BESIDE[owner.kind]
        if pods.ready:
            found = await cluster.get("apps/v1", pods.workload, namespace, workload_of(owner))
            serve = _all_ready(found)
        else:
            running = (await _pods(cluster, namespace, [owner])).values()
            serve = sum(running) >= each["spec"].get("replicas", 1)
        if each["spec"].get("replicas") != 0 and not serve:
            return False
    return True


async def run_once(cluster: Cluster, pod: Object) -> None:
    """Until it has done its work; then it is told to go. Raises Failed."""
    namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
    await end(cluster, namespace, name)  # of an earlier try
    await cluster.apply(pod, manager=MANAGER)
    deadline = time.monotonic() + RUN_S
    try:
        while (phase := await _phase(cluster, namespace, name)) != "Succeeded":
            if phase == "Failed" or time.monotonic() > deadline:
                said = await _last_words(cluster, namespace, name)
                raise Failed(f"the pod {name} has not done its work: {said}")
            await asyncio.sleep(POLL_S)
    finally:
        await cluster.delete("v1", "Pod", namespace, name)


async def end(cluster: Cluster, namespace: str, pod: str) -> None:
    """Until nothing of it runs any more: its object goes after that. Raises Failed."""
    await cluster.delete("v1", "Pod", namespace, pod)
    deadline = time.monotonic() + GONE_S
    while await cluster.get("v1", "Pod", namespace, pod) is not None:
        if time.monotonic() > deadline:
            raise Failed(f"the pod {pod} does not end")
        await asyncio.sleep(POLL_S)


async def _beside(cluster: Cluster, namespace: str, idc: str) -> list[Object]:
    """What stands beside an IDC: GatewayClusters and so on."""
    found = [each for kind in BESIDE for each in await cluster.list(API_VERSION, kind, namespace)]
    return [each for each in found if each["spec"]["idc"] == idc]


async def _pods(cluster: Cluster, namespace: str, beside: Sequence[Owner]) -> dict[str, bool]:
    """Those beside an IDC's own, and whether something runs in each."""
    found: list[Object] = []
    for owner in beside:
        found += await cluster.list("v1", "Pod", namespace, selector_of(owner))
    return {each["metadata"]["name"]: bool(_life(each)) for each in found}


def _life(pod: Object | None) -> list[str]:
    """Another once what ran has ended, or its pod is gone."""
    containers = (pod or {}).get("status", {}).get("containerStatuses", ())
    return [
        f"{each.get('containerID')} {each.get('restartCount')}"
        for each in containers
        if "running" in each.get("state", {})
    ]


async def _kill(
    cluster: Cluster,
    namespace: str,
    own: str,
    beside: Sequence[Owner],
    within_s: float = KILLED_S,
) -> dict[str, str]:
    """All that runs in the pod of an IDC, and in those beside it, as one; what is in the way of it,
    by the pod."""

    async def kill(pod: str) -> str:
        before = _life(await cluster.get("v1", "Pod", namespace, pod))
        try:
            why = (await cluster.execute(namespace, pod, KILL)).strip()
        except ImError as error:
            why = str(error)
        # The answer may not come where the kill has, on a node that is busy with it.
        deadline = time.monotonic() + within_s
        while why and time.monotonic() < deadline:
            if before != _life(await cluster.get("v1", "Pod", namespace, pod)):
                return ""
            await asyncio.sleep(POLL_S)
        return why

    others = [pod for pod, runs in (await _pods(cluster, namespace, beside)).items() if runs]
    said = await asyncio.gather(*(kill(pod) for pod in (own, *others)))
    return dict(zip((own, *others), said, strict=True))


def _all_ready(workload: Object | None) -> bool:
    """Of a StatefulSet or Deployment: as many as are wanted, and some are."""
    if workload is None:
        return False
    status, wanted = workload.get("status", {}), workload["spec"]["replicas"]
    seen = status.get("observedGeneration") == workload["metadata"].get("generation")
    return bool(seen and 0 < wanted <= status.get("readyReplicas", 0))


async def _last_words(cluster: Cluster, namespace: str, pod: str) -> str:
    """Of its log; where that is empty or not for us, what the cluster says of the pod."""
    with contextlib.suppress(ImError):
        if said := (await cluster.log(namespace, pod)).splitlines():
            return said[-1]
    found = await cluster.get("v1", "Pod", namespace, pod)
    if found is None:
        return "it is gone"
    status = found.get("status", {})
    ended = [
        end.get("reason") or f"it ended with {end.get('exitCode')}"
        for each in status.get("containerStatuses", ())
        if (end := each.get("state", {}).get("terminated"))
    ]
    why = [status.get("reason"), trouble_of(status), *ended]
    return ": ".join(filter(None, [str(status.get("phase", "nobody has seen it")), *why]))


async def _phase(cluster: Cluster, namespace: str, pod: str) -> str:
    """Empty when nobody has seen it yet; Failed when it is gone."""
    found = await cluster.get("v1", "Pod", namespace, pod)
    return str(found.get("status", {}).get("phase", "")) if found else "Failed"
