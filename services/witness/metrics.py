"""What a witness shows to Prometheus, put together when it asks (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from services.node import families
from services.node.families import family

if TYPE_CHECKING:
    from services.witness.witness import Witness


def registry_of(witness: Witness) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(_WitnessCollector(witness))
    return registry


class _WitnessCollector(Collector):
    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._witness.status()
        yield family("im_ready", [((), not self._witness.not_ready())])
        yield from families.process(status, self._witness.certificate.pair)
        yield from families.policy(status)
