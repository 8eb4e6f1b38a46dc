"""Liveness, readiness and metrics of an operator over HTTP (docs/metrics.md).

Without TLS and for everybody, unlike those of an IDC: an operator has no certificate of a region,
and what it tells are counts by kind, no names.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from imcore.errors import BadInput
from imctl.reconcile.election import Election
from imctl.reconcile.measured import Calls
from imctl.reconcile.reconciler import Reconciler
from services.node.families import family, histogram
from services.probes import probed


class OperatorCollector(Collector):
    def __init__(self, election: Election, reconciler: Reconciler, calls: Calls) -> None:
        self._election, self._reconciler, self._calls = election, reconciler, calls

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        election = self._election
        yield family("im_operator_leader", [((), election.leading())])
        if election.renewed_ms:
            renewed = "im_operator_lease_renewed_timestamp_seconds"
            yield family(renewed, [((), election.renewed_ms / 1000)])
        yield from self._reconciles()
        yield from self._api()

    def _reconciles(self) -> Iterator[Metric]:
        one = self._reconciler
        standing = one.standing(time.monotonic())
        yield family("im_operator_objects", [((kind,), n) for kind, n in standing.objects.items()])
        failing = [((kind,), standing.failing[kind]) for kind in standing.objects]
        yield family("im_operator_objects_failing", failing)
        yield family("im_operator_queue_depth", [((q,), n) for q, n in standing.depth.items()])
        oldest = [((q,), age_s) for q, age_s in standing.oldest_s.items()]
        yield family("im_operator_queue_oldest_seconds", oldest)
        looks = [
            ((queue, kind), verb)
            for queue, verbs in one.measured.items()
            for kind, verb in verbs.known.items()
        ]
        yield histogram("im_operator_reconcile_seconds", looks)
        failures = [
            ((*labels, reason), count)
            for labels, verb in looks
            for reason, count in verb.failures.items()
        ]
        yield family("im_operator_reconcile_failures_total", failures)

    def _api(self) -> Iterator[Metric]:
        calls = self._calls
        times = [((verb,), found) for verb, found in calls.times.known.items()]
        yield histogram("im_operator_api_seconds", times)
        yield family("im_operator_api_calls_total", calls.counts.items())
        yield family("im_operator_api_failures_total", calls.failures.items())


@asynccontextmanager
async def serving(
    host: str, port: int, collector: Collector, not_ready: Callable[[], str]
) -> AsyncIterator[None]:
    """``not_ready``: why it could not work; empty: it could. Raises BadInput when the address is
    taken."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(collector)

    app = probed(registry, lambda: [why] if (why := not_ready()) else [])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise BadInput(f"{host}:{port}: expected a free address, got {error}") from error
    try:
        yield
    finally:
        await runner.cleanup()
