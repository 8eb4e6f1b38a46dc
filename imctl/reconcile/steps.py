"""How new settings come to gateways one by one, each after the clients of the one before are back.
Pure.

What is wanted back is measured by the count of before the whole rollout: by that of each step, ten
percent could go with every one of them. The last pod is judged like the others: the rollout is over
once its count is let go of.

A StatefulSet gives its pods from number ``partition`` on (from 0) the settings that are wanted. The
operator lowers it by one for each step; it stands in the StatefulSet, so whoever takes over goes on
from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from imctl.api.gateways import Rollout
from imctl.reconcile.objects import TEMPLATE


class Step(NamedTuple):
    """``partition``: as many as there are: it has not begun. ``clients``: of the IDC when the
    rollout began; None: nobody said, or it is over. ``waits``: for what, if it does."""

    partition: int
    clients: int | None = None
    waits: str = ""


def template_of(workload: Mapping[str, Any]) -> str:
    """The mark of the settings of its pods; empty: there is none."""
    metadata = workload.get("spec", {}).get("template", {}).get("metadata", {})
    return str(metadata.get("annotations", {}).get(TEMPLATE, ""))


def partition_of(workload: Mapping[str, Any]) -> int:
    """The number, from 0, of the first pod that gets the settings that are wanted."""
    strategy = workload.get("spec", {}).get("updateStrategy", {})
    return int(strategy.get("rollingUpdate", {}).get("partition", 0))


def step_of(
    rollout: Rollout,
    replicas: int,
    template: str,
    workload: Mapping[str, Any],
    clients: int | None,
    before: int | None,
    unknown: str = "",
) -> Step:
    """``template``: the hash of the settings that are wanted; ``workload``: the StatefulSet, empty:
    there is none. ``clients``: of the IDC now, ``before``: when the rollout began that is under
    way; None: nobody is waited for. ``unknown``: why it is not known how many there are; empty: it
    is."""
    spec, keep = workload.get("spec", {}), min(rollout.keep, replicas)
    partition = replicas
    if spec and template_of(workload) == template:
        partition = min(partition_of(workload), replicas)
    begun, last = partition < replicas, partition <= keep
    if not spec or (last and not (begun and before is not None)):
        return Step(keep)
    waits = _waits(rollout, replicas, partition, workload, clients, before) if begun else ""
    if waits or unknown:
        return Step(max(partition, keep), before if begun else None, waits or unknown)
    if last:
        return Step(keep)
    # Of an IDC that is not active any more nobody comes back, whatever there was.
    goes_on = begun and before is not None and clients is not None
    return Step(partition - 1, before if goes_on else clients)


def _waits(
    rollout: Rollout,
    replicas: int,
    partition: int,
    workload: Mapping[str, Any],
    clients: int | None,
    before: int | None,
) -> str:
    status = workload.get("status", {})
    if status.get("observedGeneration") != workload["metadata"].get("generation"):
        return "the cluster has not seen it yet"
    if status.get("updatedReplicas", 0) < replicas - partition:
        return "a pod is replaced"
    if status.get("availableReplicas", 0) < replicas:
        return "not all gateways are ready"
    if before is not None and clients is not None:
        wanted = before * rollout.reconnected / 100
        if clients < wanted:
            return f"{clients} of {before} clients are there, {rollout.reconnected} % are wanted"
    return ""
