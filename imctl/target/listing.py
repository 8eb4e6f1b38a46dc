"""What the namespaces of a deployment have of the kinds by which things are asked for and shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence

from imcore.errors import ImError, Unavailable
from imctl.api.kinds import (
    API_VERSION,
    DRILL,
    DRILL_RUN,
    GEO_POLICY,
    REPLICATION,
    TRAFFIC_OPERATION,
)
from imctl.reconcile.cluster import Cluster, Rejected
from imctl.reconcile.observed import Object
from imctl.target.base import Place
from imctl.target.kubernetes import Kubernetes
from imctl.target.operators import reached

KINDS = (TRAFFIC_OPERATION, DRILL_RUN, DRILL, REPLICATION, GEO_POLICY)


def places_of(target: Kubernetes) -> list[Place]:
    """Of its parts, and those from which its IDCs take drills."""
    found = [target.place_of(part) for part in target.names()]
    for idc, namespaces in target.drilled_from().items():
        found += [Place(target.place_of(idc).context, each) for each in namespaces]
    return list(dict.fromkeys(found))


async def listed(places: Sequence[Place]) -> dict[str, list[Object]]:
    """By kind. What nobody here may read, or no API server tells, is left out."""
    grouped: dict[str, list[str]] = {}
    for place in places:
        grouped.setdefault(place.context, []).append(place.namespace)
    every = await asyncio.gather(*(_of_context(*each) for each in grouped.items()))
    return {kind.name: [one for some in every for one in some[kind.name]] for kind in KINDS}


async def _of_context(context: str, namespaces: Sequence[str]) -> Mapping[str, list[Object]]:
    found: dict[str, list[Object]] = {kind.name: [] for kind in KINDS}
    with contextlib.suppress(ImError):
        async with reached(context) as cluster:
            for kind in KINDS:
                for namespace in namespaces:
                    found[kind.name] += await _of(cluster, kind.name, namespace)
    return found


async def _of(cluster: Cluster, kind: str, namespace: str) -> list[Object]:
    """Raises Unavailable: then neither does it answer for the next kind."""
    try:
        return await cluster.list(API_VERSION, kind, namespace)
    except Unavailable:
        raise
    except Rejected:
        return []
