"""The operator beside a deployment on Kubernetes: whether one is there that would carry out what an
object asks for, and whether it still is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from kubernetes_asyncio.client import ApiException
from kubernetes_asyncio.config import ConfigException

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from imcore.runtime import Clock
from imctl.api.kinds import API_VERSION, Kind
from imctl.errors import Failed, Guarded
from imctl.reconcile.cluster import CALL_S, MANAGER, Cluster, Conflict, Rejected
from imctl.reconcile.election import LEASE
from imctl.reconcile.lease import EVERY_S, LEASE_S, holder_of, is_fresh, works_in
from imctl.reconcile.observed import Object
from imctl.target import calls
from imctl.target.base import Place

TRIES = 3  # to make an object, whose API server does not answer
GONE_S = 30.0  # another operator takes the Lease within 15 s, and lists what there is
LOOK_S = 2.0  # between two looks at its Lease


class Operator(NamedTuple):
    """``lease``: the namespace of its Lease; empty: whoever asks may not read it. ``sure``: it was
    renewed of late."""

    place: Place
    lease: str
    holder: str
    sure: bool


@asynccontextmanager
async def reached(context: str) -> AsyncIterator[Cluster]:
    """The API server of a context. Raises Failed when the context is of no use."""
    try:
        api = await calls.client(context)
    except (ConfigException, OSError, ApiException) as error:
        raise Failed(f"the context {context or 'of now'} cannot be used: {error}") from error
    async with api:
        yield Cluster(api, lambda: CALL_S)


async def find(
    places: Sequence[Place], kind: Kind, secrets: Sequence[str], clock: Clock
) -> tuple[list[Operator], list[str]]:
    """Where an object of this kind would be carried out, those that are sure first; and, of the
    other places, why not. ``secrets``: that it would name; who may not look takes them for there.
    """
    found: list[Operator] = []
    why: list[str] = []
    for place in places:
        try:
            async with reached(place.context) as cluster:
                operator = await _look(cluster, place, kind, secrets, clock)
        except ImError as error:
            why.append(f"{place.namespace}: {error}")
            continue
        found.append(operator)
        if operator.sure:
            break
    return sorted(found, key=lambda each: not each.sure), list(dict.fromkeys(why))


async def _look(
    cluster: Cluster, place: Place, kind: Kind, secrets: Sequence[str], clock: Clock
) -> Operator:
    """Raises Failed with why it would not be carried out; ImError."""
    if not await cluster.knows(API_VERSION, kind.name):
        raise Failed(f"the cluster does not serve {kind.crd} (charts/im-operator)")
    for secret in secrets:
        if not await _has(cluster, place.namespace, secret):
            raise Failed(f"there is no Secret {secret} (docs/operator.md)")
    leases = await _leases(cluster, place.namespace)
    if leases is None:
        return Operator(place, "", "", sure=False)
    held = [each for each in leases if holder_of(each)]
    if not held:
        raise Failed("no operator holds its Lease there")
    fresh = [each for each in held if is_fresh(each, clock.wall_ms())]
    if not fresh:
        fresh = await _renewed(cluster, place.namespace, held)
    if not fresh:
        raise Failed(f"the operator {holder_of(held[0])} does not renew its Lease any more")
    metadata = fresh[0]["metadata"]
    return Operator(place, metadata["namespace"], holder_of(fresh[0]), sure=True)


async def _has(cluster: Cluster, namespace: str, secret: str) -> bool:
    try:
        return await cluster.get("v1", "Secret", namespace, secret) is not None
    except Rejected:
        return True


async def _leases(cluster: Cluster, namespace: str) -> list[Object] | None:
    """Of operators that work there; None: nobody here may know."""
    try:
        found = await cluster.everywhere(LEASE, "Lease", MANAGER)
    except Rejected:
        try:
            own = await cluster.get(LEASE, "Lease", namespace, MANAGER)
        except Rejected:
            own = None
        if own is None:  # its operator may be in a namespace of its own
            return None
        found = [own]
    return [each for each in found if works_in(each, namespace)]


async def _renewed(cluster: Cluster, namespace: str, before: Sequence[Object]) -> list[Object]:
    """Those that are while one looks, whatever the hour is on either machine."""
    await asyncio.sleep(EVERY_S + 1)
    versions = {each["metadata"]["resourceVersion"] for each in before}
    now = await _leases(cluster, namespace) or []
    return [
        each
        for each in now
        if holder_of(each) and each["metadata"]["resourceVersion"] not in versions
    ]


async def make(cluster: Cluster, body: Object) -> Object:
    """Once, however often it is sent: nobody else's object has its name. Raises Guarded where it
    was not taken; OutcomeUnknown."""
    metadata, why = body["metadata"], ""
    where = metadata["namespace"], metadata["name"]
    called = f"{body['kind']} {'/'.join(where)}"
    for _ in range(TRIES):
        try:
            return await cluster.write(body, CALL_S)
        except Conflict as error:
            found = await cluster.get(body["apiVersion"], body["kind"], *where)
            if found is None:
                raise Failed(f"{called} was not made: {error}") from error
            return found
        except Rejected as error:
            raise Guarded(f"{called} was not made: {error}") from error
        except Unavailable as error:
            why = str(error)
            await asyncio.sleep(EVERY_S)
    raise OutcomeUnknown(f"{called} may have been made, and is carried out then: {why}")


class Silence:
    """How long nobody has renewed the operator's Lease, by this machine's steady clock."""

    def __init__(self, operator: Operator, clock: Clock) -> None:
        self.holder = operator.holder
        self._operator = operator
        self._clock = clock
        self._version = ""
        self._heard = clock.now()
        self._looked = clock.now()

    async def look(self, cluster: Cluster) -> float:
        """Seconds; 0 where its Lease cannot be read: then nobody knows. An API server that does not
        answer tells nothing of the operator."""
        now = self._clock.now()
        if self._operator.lease and now - self._looked >= LOOK_S:
            self._looked = now
            try:
                lease = await cluster.get(LEASE, "Lease", self._operator.lease, MANAGER)
            except (Rejected, Unavailable):
                self._heard = now
                return 0.0
            version = lease["metadata"]["resourceVersion"] if lease else ""
            holder = holder_of(lease) if lease else ""
            if holder and version != self._version:
                self._version, self._heard, self.holder = version, now, holder
        silent = now - self._heard if self._operator.lease else 0.0
        return silent if silent >= LEASE_S else 0.0
