"""What an object names, beside it in its namespace: not there yet is nothing out of the way."""

from __future__ import annotations

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.api.kinds import API_VERSION
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.decide import judge_region
from imctl.reconcile.observed import Object, Owner


async def region_if_any(cluster: Cluster, owner: Owner, name: str) -> Region | None:
    """Raises BadInput for one that is not valid."""
    found = await cluster.get(API_VERSION, "Region", owner.namespace, name)
    if found is None:
        return None
    region, problems = judge_region(name, found["spec"])
    if region is None:
        raise BadInput(f"Region {name} is not valid: {problems[0]}")
    return region


async def region_of(cluster: Cluster, owner: Owner, name: str) -> Region:
    """Raises BadInput."""
    region = await region_if_any(cluster, owner, name)
    if region is None:
        raise BadInput(f"Region {name} is not in this namespace")
    return region


async def secret_of(cluster: Cluster, owner: Owner, name: str) -> Object:
    """Raises BadInput."""
    secret = await cluster.get("v1", "Secret", owner.namespace, name)
    if secret is None:
        raise BadInput(f"Secret {name} is not there")
    return secret
