"""Brings one object at a time to what it says: look, decide (``decide``), apply, say.

Level-triggered: an event only says that something may differ, and what is done is a function of
what is there now. So an event that comes twice, late or never (all is looked at now and then) does
no harm, and an operator that dies in the middle is continued by the next.

What this process has applied is not sent again until it is another: an event says so, or a look at
the lists of what there is, each minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from imcore.errors import ImError, Unavailable
from imctl.api.kinds import (
    API_VERSION,
    DRILL,
    DRILL_RUN,
    GATEWAY_CLUSTER,
    GEO_POLICY,
    IDC,
    IM_CLUSTER,
    REGION,
    REPLICATION,
    ROUTE_CLUSTER,
    TRAFFIC_OPERATION,
    WITNESS,
)
from imctl.api.model import IdcSpec, Phase, WitnessSpec
from imctl.reconcile import process, seen
from imctl.reconcile.applied import Applied, Name, Place
from imctl.reconcile.besideobjects import BESIDE
from imctl.reconcile.cluster import LIFTER, Cluster, Conflict, Rejected, read, reason_of
from imctl.reconcile.decide import Decision, decide
from imctl.reconcile.driller import Drilling
from imctl.reconcile.drillruns import DrillRuns
from imctl.reconcile.gatewayclusters import GatewayClusters
from imctl.reconcile.imclusters import ImClusters
from imctl.reconcile.lease import NotLeading
from imctl.reconcile.looks import Looks
from imctl.reconcile.objects import CERT_MANAGER, CORE_OF, MANAGED_BY, MANAGER, let_up
from imctl.reconcile.observed import Core, Object, Observed, Owner
from imctl.reconcile.peers import Peers
from imctl.reconcile.regions import Regions
from imctl.reconcile.routeclusters import RouteClusters
from imctl.reconcile.runs import Runs
from imctl.reconcile.schedules import Schedules
from imctl.reconcile.views import Views
from services.metrics.verbs import Verbs

log = logging.getLogger("im.operator")

SPECS: dict[str, type[IdcSpec] | type[WitnessSpec]] = {
    IDC.name: IdcSpec,
    WITNESS.name: WitnessSpec,
}
OWNERS = (*SPECS, *BESIDE)  # of StatefulSets and Deployments
RUNS = (TRAFFIC_OPERATION.name, DRILL_RUN.name)  # of which no objects of ours are made
VIEWS = (REPLICATION.name, GEO_POLICY.name)
QUEUES = ("objects", "idcs")  # looked at by themselves, and by asking the processes of IDCs
WORKERS = 4
PEER_WORKERS = 16  # of their own, for what waits for IDCs that may not answer
RESYNC_S = 300.0  # until each object is looked at again without a reason
SWEEP_S = 60.0  # until what was made is seen again
# Again, for what is on its way (pods and Secrets are not watched); later while nothing changes.
SOON_S, SOON_MAX_S = 3.0, 30.0
RETRY_S, RETRY_MAX_S = 0.5, 30.0


class Key(NamedTuple):
    """``asks``: it is about what is learnt and done by asking the processes of IDCs."""

    kind: str
    namespace: str
    name: str
    asks: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def queue(self) -> str:
        return QUEUES[self.asks]


class Standing(NamedTuple):
    """``objects``, ``failing``: by kind; those known, and of these the ones whose last look failed.
    By queue ``depth``: that wait for a worker; ``oldest_s``: since the one was asked for that is
    waited for the longest, until it is done; 0: none is."""

    objects: Counter[str]
    failing: Counter[str]
    depth: dict[str, int]
    oldest_s: dict[str, float]


class Reconciler:
    """``wall``: the time of day, RFC 3339. ``drilling``, ``runner``, ``namespaces``: as of
    ``DrillRuns``."""

    def __init__(
        self,
        cluster: Cluster,
        figures: Mapping[str, float],
        wall: Callable[[], str],
        peers: Peers,
        drilling: Drilling | None = None,
        runner: str = "",
        namespaces: Sequence[str] = (),
    ) -> None:
        self._cluster = cluster
        self._figures = figures
        self._wall = wall
        self._runs = Runs(cluster, peers, wall, self._tell)
        self._drills = DrillRuns(cluster, drilling, runner, namespaces, wall, self._tell)
        self._views = Views(cluster, peers, wall, self._tell)
        self._schedules = Schedules(cluster, drilling is not None, wall, self._tell)
        self._looks = Looks(cluster, peers, wall, self._tell, self._look_at_region)
        self._besides: dict[str, GatewayClusters | RouteClusters | ImClusters] = {
            GATEWAY_CLUSTER.name: GatewayClusters(
                cluster, figures, wall, self._tell, self._looks.heard
            ),
            ROUTE_CLUSTER.name: RouteClusters(cluster, figures, wall, self._tell),
            IM_CLUSTER.name: ImClusters(cluster, figures, wall, self._tell),
        }
        self._regions = Regions(cluster, wall, self._tell)
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._peer_queue: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in a queue
        self._since: dict[Key, float] = {}  # asked for, and not done yet
        self._running: set[Key] = set()
        self._again: dict[Key, str] = {}  # asked for while it ran: as in ``look``
        self._known: set[Key] = set()
        self._idc_of: dict[Key, Key] = {}  # by what stands beside it
        self._soon: dict[Key, float] = {}
        self._applied: dict[Key, Applied] = {}  # by the owner
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self.measured = {queue: Verbs() for queue in QUEUES}  # the verb: a kind

    def look(self, key: Key, version: str = "") -> None:
        """Soon; once, however often it is asked for until then. ``version``: of the object, when
        that it has this one is all there is to look for."""
        self._known.add(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._running:
            again = self._again.get(key, version)
            self._again[key] = version if again == version else ""
        elif key not in self._waiting:
            self._waiting.add(key)
            self._since[key] = time.monotonic()
            (self._peer_queue if key.asks else self._queue).put_nowait(key)

    def changed(self, document: Object) -> None:
        """An object is there, has changed, or is gone."""
        kind, metadata = document["kind"], document["metadata"]
        key = Key(kind, metadata["namespace"], metadata["name"])
        version = str(metadata.get("resourceVersion", ""))
        if kind not in RUNS and kind not in VIEWS and not self._has_said(key, version):
            self.look(key, version)
        if kind == REGION.name:
            self.look_at_all_of(key.namespace)
        if kind in BESIDE:
            self._idc_of[key] = key._replace(kind=IDC.name, name=document["spec"]["idc"])
        if kind == IM_CLUSTER.name:  # also when its status says that another core serves
            self.look(self._idc_of[key])
        if kind == IDC.name:
            for beside in [its for its, idc in self._idc_of.items() if idc == key]:
                self.look(beside)
        asking = key._replace(asks=True)
        # IDCs are asked now and then. That an answer has changed the status is no reason.
        asked = asking in self._timers or asking in self._running
        if kind in RUNS or (
            (kind in VIEWS or (kind == IDC.name and Looks.is_of_use(document))) and not asked
        ):
            self.look(asking)

    def _has_said(self, key: Key, version: str) -> bool:
        """Whether the object has this version by the status that was written here."""
        applied = self._applied.get(key)
        return applied is not None and bool(version) and applied.said == version

    def owned(self, owner: Key, name: Name, version: str) -> None:
        """An object of an owner's is there, or has changed (``version``: its resourceVersion), or
        is gone (empty)."""
        applied = self._applied.get(owner)
        if applied is None or applied.changed(name, version):
            self.look(owner)

    def look_at_all_of(self, namespace: str) -> None:
        """When a Region has changed there."""
        for key in list(self._known):
            if key.namespace == namespace and key.kind in OWNERS and not key.asks:
                self.look(key)

    def _look_at_region(self, namespace: str, name: str) -> None:
        self.look(Key(REGION.name, namespace, name))

    async def run(self) -> None:
        """Until it is cancelled. Raises NotLeading."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(self._queue))
            for _ in range(PEER_WORKERS):
                group.create_task(self._work(self._peer_queue))
            group.create_task(self._resync())
            group.create_task(self._sweep())

    async def _resync(self) -> None:
        """One after the other, so that what happens meanwhile does not wait for all of them."""
        while True:
            keys = list(self._known)
            for key in keys:
                self.look(key)
                await asyncio.sleep(RESYNC_S / len(keys))
            if not keys:
                await asyncio.sleep(SOON_S)

    async def _sweep(self) -> None:
        """Whatever somebody has edited or deleted: not all of it is watched."""
        while True:
            places = sorted({each for one in self._applied.values() for each in one.places()})
            for place in places:
                try:
                    await self._see(place)
                except ImError as error:
                    log.warning("%s of %s: %s", place.kind, place.namespace, error)
                await asyncio.sleep(SWEEP_S / len(places))
            if not places:
                await asyncio.sleep(SOON_S)

    async def _see(self, place: Place) -> None:
        labels = f"{MANAGED_BY}={MANAGER}"
        found = await self._cluster.list(place.api, place.kind, place.namespace, labels)
        versions = {
            each["metadata"]["name"]: str(each["metadata"].get("resourceVersion", ""))
            for each in found
        }
        for key, applied in list(self._applied.items()):
            if applied.listed(place, versions):
                self.look(key)

    async def _work(self, queue: asyncio.Queue[Key]) -> None:
        while True:
            key = await queue.get()
            self._waiting.discard(key)
            self._running.add(key)
            try:
                wait_s = await self._one(key)
            finally:
                self._running.discard(key)
                self._since.pop(key, None)
            version = self._again.pop(key, None)
            if version is not None and not self._has_said(key, version):
                self.look(key)
            elif wait_s is not None:
                self._later(key, wait_s)

    def _later(self, key: Key, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(wait_s, self.look, key)

    async def _one(self, key: Key) -> float | None:
        """Seconds until it is to be looked at again; None: when something happens."""
        began = time.monotonic()

        def done(reason: str = "") -> None:
            self.measured[key.queue].done(key.kind, time.monotonic() - began, reason)

        try:
            wait_s = await self.reconcile(key)
        except NotLeading:
            raise
        except Exception as error:  # whatever is wrong with one object, the others go on
            done(reason_of(error))
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            surprise = None if isinstance(error, ImError) else error
            log.warning("%s: %s", key, error, exc_info=surprise)
            return float(min(RETRY_S * 2 ** min(failures, 10), RETRY_MAX_S))
        done()
        self._failures.pop(key, None)
        return wait_s

    def standing(self, now: float) -> Standing:
        """``now``: of the monotonic clock."""
        found = Standing(Counter(), Counter(), dict.fromkeys(QUEUES, 0), dict.fromkeys(QUEUES, 0.0))
        for counted, keys in ((found.objects, self._known), (found.failing, self._failures)):
            counted.update(key.kind for key in {each._replace(asks=False) for each in keys})
        for key in self._waiting:
            found.depth[key.queue] += 1
        for key, since in self._since.items():
            found.oldest_s[key.queue] = max(found.oldest_s[key.queue], now - since)
        return found

    async def reconcile(self, key: Key) -> float | None:
        """Once. Raises ImError for what may do better later."""
        document = await self._cluster.get(API_VERSION, key.kind, key.namespace, key.name)
        if document is None:
            self._known.discard(key)
            self._idc_of.pop(key, None)
            self._soon.pop(key, None)
            self._applied.pop(key, None)
            return None
        owner = seen.owner_of(document)
        if key.kind == REGION.name:
            return await self._regions.reconcile(owner, document)
        if key.kind == DRILL.name:
            return await self._schedules.reconcile(owner, document)
        if key.kind == TRAFFIC_OPERATION.name:
            return await self._runs.reconcile(owner, document)
        if key.kind == DRILL_RUN.name:
            return await self._drills.reconcile(owner, document)
        if key.kind in BESIDE:
            applied, besides = self._applied.setdefault(key, Applied()), self._besides[key.kind]
            return self._soon_of(key, *await besides.reconcile(owner, document, applied))
        if key.kind in VIEWS:
            applied = self._applied.setdefault(key, Applied())
            return await self._views.look(owner, document, applied)
        if key.asks:
            return await self._looks.look(owner, document)
        return await self._workload(key, owner, document)

    async def _workload(self, key: Key, owner: Owner, document: Object) -> float | None:
        before = document.get("status", {})
        spec = read(SPECS[owner.kind], document["spec"])
        observed = await self._observe(owner, spec, document)
        decision = decide(owner, spec, observed, self._figures)
        applied = self._applied.setdefault(key, Applied())
        if decision.apply and isinstance(spec, IdcSpec):
            await self._looks.secure(owner, spec, document)
        try:
            await self._cluster.apply_all(decision.apply, applied)
        except Rejected as error:
            await self._say(owner, _rejected(decision, str(error)), before)
            await self._let_up(owner, observed)
            raise
        if not decision.apply:
            await self._let_up(owner, observed)
        if decision.apply and applied.kept != decision.keep:
            await self._prune(owner, decision)
            applied.kept = decision.keep
        said = await self._say(owner, decision, before)
        applied.note(said)
        # A drill's time is over by itself.
        down = bool(observed.down_until)
        # Whether a core still stands by decides who may be evicted, and pods are not watched.
        several = bool(observed.cores) and bool(observed.state) and bool(decision.apply)
        settled = decision.status["phase"] in (Phase.SERVING, Phase.PAUSED, Phase.DELETING)
        at_once = said is not None or down or several
        return self._soon_of(key, settled and not down and not several, at_once)

    def _soon_of(self, key: Key, settled: bool, changing: bool) -> float | None:
        """Seconds until what waits for something is looked at again; later while nothing of it
        changes. None: it is as it is wanted."""
        if settled:
            self._soon.pop(key, None)
            return None
        last = 0.0 if changing else self._soon.get(key, 0.0)
        self._soon[key] = min(SOON_MAX_S, 1.5 * last) if last else SOON_S
        return self._soon[key]

    async def _observe(
        self, owner: Owner, spec: IdcSpec | WitnessSpec, document: Object
    ) -> Observed:
        region = await self._cluster.get(API_VERSION, "Region", owner.namespace, spec.region)
        certificates = spec.certificates
        names = {certificates.region_keys, *spec.secrets}
        names |= {certificates.secret} if certificates.secret else set()
        secrets = {}
        for name in sorted(names):
            secret = await self._cluster.get("v1", "Secret", owner.namespace, name)
            if secret is not None:
                secrets[name] = frozenset(secret.get("data", {}))
        pod_name = f"{owner.name}-{owner.kind.lower()}-0"
        pod = seen.pod_of(
            await self._cluster.get("v1", "Pod", owner.namespace, pod_name),
            document.get("status", {}),
        )
        cores: tuple[Core, ...] = ()
        # Its own pod, where there is one, tells whether it could have others.
        alone = pod is not None and not pod.shares
        if isinstance(spec, IdcSpec) and (spec.cores == "shared" or not alone):
            labels = f"{CORE_OF}={owner.name}"
            found = await self._cluster.list("v1", "Pod", owner.namespace, labels)
            cores = seen.cores_of(found, owner.name)
        return Observed(
            region["spec"] if region else None,
            secrets,
            bool(certificates.issuer) and await self._cluster.serves(CERT_MANAGER),
            pod,
            process.state_of(document.get("status", {})),
            seen.down_until(document, self._wall()),
            cores,
            seen.served_lately(document.get("status", {}), self._wall()),
        )

    async def _let_up(self, owner: Owner, observed: Observed) -> None:
        """What it is now is left as it is, but not without what a drill has taken from it."""
        if observed.down_until:
            return
        name = f"{owner.name}-{owner.kind.lower()}"
        workload = await self._cluster.get("apps/v1", "StatefulSet", owner.namespace, name)
        if (up := let_up(workload)) is not None:
            await self._cluster.apply(up, manager=LIFTER)

    async def _prune(self, owner: Owner, decision: Decision) -> None:
        """Region files that no pod uses any more."""
        labels = f"app.kubernetes.io/instance={owner.name},"
        labels += f"app.kubernetes.io/component={owner.kind.lower()}"
        for each in await self._cluster.list("v1", "ConfigMap", owner.namespace, labels):
            metadata = each["metadata"]
            mine = any(one["uid"] == owner.uid for one in metadata.get("ownerReferences", ()))
            if mine and metadata["name"].rpartition("-")[2] not in decision.keep:
                name = metadata["name"]
                await self._cluster.delete("v1", "ConfigMap", owner.namespace, name)

    async def _say(self, owner: Owner, decision: Decision, before: Object) -> Object | None:
        """The object, if its status was another before."""
        status, made = seen.status_of(decision, before, self._wall()), None
        if seen.differs(status, before):
            made = await self._cluster.apply(seen.status_object(owner, status), status=True)
        event = seen.event_of(owner, decision, before, self._wall())
        if event is not None:
            await self._tell(event)
        return made

    async def _tell(self, event: Object) -> None:
        """Nothing depends on an Event. Raises NotLeading."""
        about = event["involvedObject"]
        log.info("%s %s: %s", about["kind"], about["name"], event["message"])
        try:
            await self._cluster.event(event)
        except (Conflict, Rejected, Unavailable) as error:
            log.warning("an Event is not taken: %s", error)


def _rejected(decision: Decision, why: str) -> Decision:
    status: dict[str, Any] = {
        **decision.status, "phase": str(Phase.BLOCKED), "blocked_by": [why],
    }  # fmt: skip
    return decision._replace(status=status, reason="Rejected", message=why)
