"""Metrics that a node and a witness show alike, and how a family of any is put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from imcore.certificates import Pair
from services.metrics.catalog import BY_NAME, Kind
from services.metrics.verbs import BOUNDS, Verb

Row = tuple[tuple[object, ...], float]  # the labels' values, the figure

_FAMILIES: dict[Kind, Any] = {Kind.COUNTER: CounterMetricFamily, Kind.GAUGE: GaugeMetricFamily}


def family(name: str, rows: Iterable[Row]) -> Metric:
    """Raises KeyError for what docs/metrics.md would not know."""
    metric = BY_NAME[name]
    made: Metric = _FAMILIES[metric.kind](name, metric.help, labels=metric.labels)
    for labels, value in rows:
        made.add_metric([str(label) for label in labels], float(value))  # type: ignore[attr-defined]
    return made


def histogram(name: str, rows: Iterable[tuple[tuple[str, ...], Verb]]) -> Metric:
    """Raises KeyError for what docs/metrics.md would not know."""
    metric = BY_NAME[name]
    made = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, BOUNDS), "+Inf"]
    for labels, verb in rows:
        counts = accumulate(verb.buckets)
        buckets = list(zip(bounds, map(float, counts), strict=True))
        made.add_metric(labels, buckets, verb.seconds)
    return made


def process(status: Mapping[str, Any], pair: Pair) -> Iterator[Metric]:
    """``pair``: the certificate that new connections are shown."""
    yield family("im_uptime_seconds", [((), status["uptime_s"])])
    yield family("im_alarms", [((), len(status["alarms"]))])
    ends = {"own": pair.expires, "ca": pair.ca_expires}
    yield family(
        "im_certificate_expires_timestamp_seconds",
        [((which,), end.timestamp()) for which, end in ends.items()],
    )


def policy(status: Mapping[str, Any]) -> Iterator[Metric]:
    known = status["policy"]
    yield family("im_policy_epoch", [((), known["epoch"])])
    yield family("im_policy_stale", [((), known["stale"])])
    states = known["idcs"].items()
    yield family("im_policy_state", [((idc, row["state"]), 1) for idc, row in states])
    rows = status["registries"].items()
    yield family("im_registry_up", [((name,), said == "ok") for name, said in rows])
