"""What the `kubernetes` target asks of API servers, beside what the operator asks, too."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence

from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import load_incluster_config, new_client_from_config

from imctl.api.kinds import API_VERSION, IDC
from imctl.errors import Failed
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.observed import Object
from imctl.target.found import MANAGER

ENDS = f"{MANAGER}-down"  # beside the manager of all else that the object says
# The gateway's process is not the first one of its pod where the IDC takes drills. A check of its
# successor that is under way has its name, too.
_HANG_UP = r"""
for at in /proc/[0-9]*; do
  case "$(tr '\0' ' ' 2>/dev/null < "$at/cmdline")" in
    *" --check "*) ;;
    python3*" -m services.node "*|/*/python3*" -m services.node "*)
      kill -HUP "${at#/proc/}" && echo told ;;
  esac
done
"""


async def client(context: str) -> ApiClient:
    """Of a kubeconfig; without one, inside a pod, as the pod's service account."""
    # $KUBECONFIG as it is now: the library reads it when it is loaded.
    file = os.environ.get("KUBECONFIG")
    if not file and not context and os.environ.get("KUBERNETES_SERVICE_HOST"):
        own = Configuration()
        load_incluster_config(client_configuration=own)  # type: ignore[no-untyped-call]
        return ApiClient(own)
    return await new_client_from_config(file, context or None, False)


def apply(wanted: Sequence[Object], manager: str = MANAGER) -> Callable[[Cluster], Awaitable[None]]:
    async def work(cluster: Cluster) -> None:
        for each in wanted:
            await cluster.apply(each, manager=manager)

    return work


async def replicas(cluster: Cluster, namespace: str, kind: str, workload: str) -> int:
    """That are wanted of a StatefulSet or Deployment."""
    found = await cluster.get("apps/v1", kind, namespace, workload)
    return int(found["spec"]["replicas"]) if found else 0


def end(kind: str, namespace: str, name: str) -> Callable[[Cluster], Awaitable[None]]:
    """An IDC or Witness object, and with it all that the operator has made of it, as it is: an IDC
    is not drained, whatever its object says."""

    async def work(cluster: Cluster) -> None:
        own = await cluster.get(API_VERSION, kind, namespace, name)
        if own is not None and kind == IDC.name:
            metadata = {"name": name, "namespace": namespace, "uid": own["metadata"]["uid"]}
            spec = {"deletion": "at_once"}
            head = {"apiVersion": API_VERSION, "kind": kind}
            await cluster.apply({**head, "metadata": metadata, "spec": spec}, manager=ENDS)
        await cluster.delete(API_VERSION, kind, namespace, name)

    return work


async def hang_up(cluster: Cluster, namespace: str, pod: str) -> None:
    """SIGHUP to the gateway in its pod, by a command there. Raises Failed."""
    said = await cluster.execute(namespace, pod, ("sh", "-c", _HANG_UP))
    if said.strip() != "told":
        why = said.strip() or "there is no such pod, or no gateway runs in it"
        raise Failed(f"the gateway in {namespace}/{pod} was not told to restart: {why}")


def delete(api: str, kind: str, namespace: str, name: str) -> Callable[[Cluster], Awaitable[None]]:
    return lambda cluster: cluster.delete(api, kind, namespace, name)
