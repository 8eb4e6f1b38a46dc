"""The operator's process: wait for the lease, then watch with kopf and reconcile until it is lost.

kopf watches; its handlers only say which object to look at. They are `on.event` handlers, so kopf
writes nothing into the objects, neither annotations nor finalizers, and its peering is off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import kopf
from kubernetes_asyncio import config as kubeconfig
from kubernetes_asyncio.client import ApiClient, Configuration

from imcore.errors import ImError
from imcore.runtime import Clock
from imctl.api.kinds import GROUP, KINDS, VERSION
from imctl.reconcile import admission, monitor
from imctl.reconcile.applied import Name
from imctl.reconcile.cluster import MANAGER, Cluster
from imctl.reconcile.driller import Driller
from imctl.reconcile.election import Election
from imctl.reconcile.lease import Leadership, NotLeading
from imctl.reconcile.objects import MANAGED_BY
from imctl.reconcile.peers import Peers
from imctl.reconcile.reconciler import OWNERS, Key, Reconciler

log = logging.getLogger("im.operator")
KEEP_S = 1.0
OF_ALL = f"{MANAGER}-of-all-namespaces"  # the Lease of the one that works in all of them
OWNED = (
    ("apps", "v1", "statefulsets"), ("apps", "v1", "deployments"), ("", "v1", "services"),
)  # fmt: skip


class Address(NamedTuple):
    host: str
    port: int


class Webhook(NamedTuple):
    """``certificate``: a folder with its `tls.crt` and `tls.key`."""

    at: Address
    certificate: Path


async def run(
    identity: str,
    lease_namespace: str,
    cluster_lease_namespace: str,
    namespaces: Sequence[str],
    figures: Mapping[str, float],
    clock: Clock,
    audit: Path,
    context: str = "",
    webhook: Webhook | None = None,
    drills: Path | None = None,
    metrics: Address | None = None,
) -> None:
    """Until SIGTERM. ``lease_namespace``: where replicas of one deployment elect the active one;
    ``cluster_lease_namespace``: where all do that work in all namespaces, whoever deployed them.
    ``namespaces``: those that it works in; none: all. ``audit``: a folder for the
    audit chains of what it asks of regions; ``drills``: for the drills that it runs; None: none.
    ``metrics``: where it serves them and its probes. Raises NotLeading when the lease is lost:
    nothing of this process may go on then; ImError without a cluster."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await connect(context)
    leaderships = leaderships_of(identity, lease_namespace, cluster_lease_namespace, namespaces)

    def may_write_s() -> float:
        now = clock.now()
        shortest = min(leaderships, key=lambda each: each.left(now))
        if (left := shortest.left(now)) <= 0:
            raise NotLeading(f"the lease was not renewed in time; {shortest.holder} holds it")
        return left

    async with contextlib.AsyncExitStack() as stack:
        if webhook is not None:
            await stack.enter_async_context(admission.serving(*webhook.at, webhook.certificate))
        api = await stack.enter_async_context(ApiClient())
        cluster = Cluster(api, may_write_s)
        elections: list[Election] = []
        for one in leaderships:
            elections.append(Election(one, cluster, clock, elections[-1] if elections else None))
        election = elections[-1]  # who has won it has won them all
        peers = Peers(clock, audit)
        driller = Driller(drills, may_write_s, context) if drills is not None else None
        reconciler = Reconciler(
            cluster, figures, lambda: wall(clock), peers, driller, identity, namespaces
        )
        if metrics is not None:
            shown = monitor.OperatorCollector(election, reconciler, cluster.calls)
            serving = monitor.serving(*metrics, shown, election.not_ready)
            await stack.enter_async_context(serving)
        leases = [asyncio.ensure_future(each.run()) for each in elections]
        stopping = asyncio.ensure_future(stopped.wait())
        keeping = asyncio.ensure_future(_keep(driller))
        work = asyncio.ensure_future(_lead(election.leads, reconciler, namespaces))
        try:
            done, _ = await asyncio.wait(
                (*leases, stopping, work, keeping), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {stopping}:
                task.result()
        finally:
            tasks = (work, stopping, keeping, *leases)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if driller is not None:
                driller.close()
        for each in reversed(elections):
            if each.leadership.left(clock.now()) > 0:
                await each.give_back()


def leaderships_of(
    identity: str, namespace: str, cluster_namespace: str, namespaces: Sequence[str]
) -> list[Leadership]:
    """In the order of winning them."""
    own = Leadership(identity, namespace, MANAGER, tuple(namespaces))
    if namespaces:
        return [own]
    return [own, Leadership(identity, cluster_namespace, OF_ALL)]


async def _keep(driller: Driller | None) -> None:
    """Drills go on for as long as this operator may write. Raises NotLeading."""
    while True:
        await asyncio.sleep(KEEP_S)
        if driller is not None:
            driller.keep()


async def connect(context: str = "") -> None:
    """From a kubeconfig, or from inside a pod. Raises ImError."""
    try:
        try:
            kubeconfig.load_incluster_config()  # type: ignore[no-untyped-call]
        except kubeconfig.ConfigException:
            await kubeconfig.load_kube_config(context=context or None)
    except (kubeconfig.ConfigException, OSError) as error:
        raise ImError(f"expected a kubeconfig or a pod's service account: {error}") from error


def wall(clock: Clock) -> str:
    """RFC 3339, to the second."""
    time = datetime.fromtimestamp(clock.wall_ms() / 1000, UTC)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


async def _lead(leads: asyncio.Event, reconciler: Reconciler, namespaces: Sequence[str]) -> None:
    await leads.wait()
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are ours
    settings.peering.standalone = True
    async with asyncio.TaskGroup() as group:
        reconciling = group.create_task(reconciler.run())
        await kopf.operator(  # until SIGTERM, for which it has handlers of its own
            registry=_registry(reconciler),
            settings=settings,
            # Else kopf asks for the name of its user, which has none in the image.
            identity=cast(Any, MANAGER),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=list(namespaces),
        )
        reconciling.cancel()


async def _login(**_: Any) -> kopf.ConnectionInfo:
    """kopf asks again when it is refused: tokens of service accounts are renewed."""
    found = Configuration.get_default_copy()
    token = await found.get_api_key_with_prefix("BearerToken")
    return kopf.ConnectionInfo(
        server=str(found.host),
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        scheme="Bearer" if token else None,
        token=token.split(" ")[-1] if token else None,
    )


def _registry(reconciler: Reconciler) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(_login)
    for kind in KINDS:
        kopf.on.event(GROUP, VERSION, kind.plural, registry=registry)(_changed(reconciler))
    ours = {MANAGED_BY: MANAGER}
    for group, version, plural in OWNED:
        kopf.on.event(group, version, plural, labels=ours, registry=registry)(_owned(reconciler))
    return registry


def _changed(reconciler: Reconciler) -> Callable[..., Any]:
    async def handler(body: Mapping[str, Any], **_: Any) -> None:
        reconciler.changed(dict(body))

    return handler


def _owned(reconciler: Reconciler) -> Callable[..., Any]:
    async def handler(type: str | None, body: Mapping[str, Any], **_: Any) -> None:
        metadata = body["metadata"]
        name = Name(body["kind"], metadata["namespace"], metadata["name"])
        version = "" if type == "DELETED" else metadata["resourceVersion"]
        for owner in metadata.get("ownerReferences", ()):
            if owner["kind"] in OWNERS:
                key = Key(owner["kind"], metadata["namespace"], owner["name"])
                reconciler.owned(key, name, version)

    return handler
