"""What a node shows to Prometheus, put together when it asks (docs/metrics.md)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from imcore.errors import Code
from services.control.follow import left_halfway
from services.gateway.server import Gateway
from services.metrics.hot import KINDS, Hot
from services.metrics.verbs import Verbs
from services.node import families
from services.node.config import split_address
from services.node.families import Row, family, histogram
from services.split.links import FrontLink

if TYPE_CHECKING:
    from services.node.front import FrontNode
    from services.node.ipconf import IpconfNode
    from services.node.node import Node
    from services.node.route import RouteNode

HOT_SHOWN = 10
_AWAITED = {
    "gateway": ("request",), "state": ("connect", "send"), "im": ("send",),
    "route": ("signal",), "ipconf": ("gateways",), "admin": ("send",),
}  # fmt: skip
# What fails by the service's fault, and not by what was asked: of every verb, from 0 on.
# Limits of a user or a conversation answer `overloaded` too: what the IDC sheds is in im_limited.
FAULTS = (Code.UNAVAILABLE, Code.DEADLINE, Code.NOT_REPLICATED, Code.INTERNAL)
_MEDIA_EVENTS = (
    "begun", "completed", "known", "refused_hash", "swept", "served", "fetched", "unavailable",
    "evicted",
)  # fmt: skip
_LIMITS = ("shed", "overloaded", "turned_away", "conversations_limited")


class Measured:
    """What the roles of a node count into, if its metrics are read by anybody."""

    def __init__(self, rng: random.Random, roles: Collection[str]) -> None:
        """``roles``: those that run in this process."""
        self.verbs = {role: Verbs(_AWAITED[role]) for role in _AWAITED if role in roles}
        self.hot = Hot(rng)


def registry_of(node: Node) -> CollectorRegistry:
    """Of this node alone: the library's own registry is one for all of a process."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(NodeCollector(node))
    return registry


def registry_of_front(front: FrontNode) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(FrontCollector(front))
    return registry


def registry_of_ipconf(ipconf: IpconfNode) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(IpconfCollector(ipconf))
    return registry


def registry_of_route(route: RouteNode) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    registry.register(RouteCollector(route))
    return registry


class RouteCollector(Collector):
    """It counts nothing else: requests are counted before it and after it."""

    def __init__(self, route: RouteNode) -> None:
        self._route = route

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield family("im_ready", [((), not self._route.not_ready())])
        yield family("im_route_gateways", [((), len(self._route.route.fronts))])


class IpconfCollector(Collector):
    """What only its own process knows; what it has answered its core tells."""

    def __init__(self, ipconf: IpconfNode) -> None:
        self._ipconf = ipconf

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        holder = self._ipconf.holder
        yield family("im_ready", [((), not self._ipconf.not_ready())])
        yield family("im_policy_epoch", [((), holder.policy.epoch if holder.policy else 0)])
        yield family("im_policy_stale", [((), holder.stale)])


class FrontCollector(Collector):
    """What only its own process knows, and what it is scaled by; the rest its core tells."""

    def __init__(self, front: FrontNode) -> None:
        self._front = front

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        gateway = self._front.gateway
        yield family("im_ready", [((), not self._front.not_ready())])
        if gateway is not None:
            number = self._front.config.instance
            yield family("im_gateway_connections", [((number,), len(gateway))])
            yield from _transports([(number, gateway)])


class NodeCollector(Collector):
    def __init__(self, node: Node) -> None:
        self._node = node

    def describe(self) -> Iterable[Metric]:
        return ()  # what is there is not known before the node has started

    def collect(self) -> Iterator[Metric]:
        """Of a node that has not come that far, what there is."""
        node = self._node
        yield family("im_ready", [((), not node.monitor.not_ready())])
        if not node.attached:
            return
        status = node.status.as_dict()
        yield from self._process(status)
        yield from self._policy(status)
        yield from self._clients(status)
        if node.partitions:
            yield from self._replication(status)
            yield from self._partitions()
        yield from self._media()
        measured = node.measured
        if measured is not None:
            yield from _requests(measured.verbs)
            yield family("im_hot", _hot(measured.hot))

    # ------------------------------------------------------------------------------ parts

    def _process(self, status: dict[str, Any]) -> Iterator[Metric]:
        clock = status["clock"]
        yield from families.process(status, self._node.certificate.pair)
        yield family("im_clock_offset_seconds", [((), clock["offset_ms"] / 1000)])
        yield family("im_clock_skewed", [((), clock["skewed"])])

    def _policy(self, status: dict[str, Any]) -> Iterator[Metric]:
        yield from families.policy(status)
        yield family("im_policy_operation", [((), bool(status["policy"]["operation"]))])
        newest = self._node.traffic.holder.policy
        if newest is not None:
            left = left_halfway(newest, self._node.idc)
            yield family("im_policy_left_halfway", [((), bool(left))])

    def _clients(self, status: dict[str, Any]) -> Iterator[Metric]:
        node = self._node
        # By number: a gateway's name has the boot count, and would make new series of each start.
        base = split_address(node.config.idc.endpoints.gateway)[1] - 1
        gateways: list[tuple[int, Gateway | FrontLink]] = [
            (gateway.port - base, gateway) for gateway in node.gateways
        ]
        yield family("im_gateway_connections", [((n,), len(gateway)) for n, gateway in gateways])
        yield from _transports([(n, one) for n, one in gateways if isinstance(one, Gateway)])
        routes = node.fronts.routes if node.fronts is not None else ()
        yield family("im_route_gateways", [((), sum(len(route.fronts) for route in routes))])
        yield family(
            "im_gateway_events_total",
            [
                ((n, event), count)
                for n, gateway in gateways
                for event, count in self._events(gateway).items()
            ],
        )
        shards = dict.fromkeys((shard.name for shard in node.config.region.spec.geo.shards), 0)
        sessions = (shards | status["shards"]).items()
        yield family("im_sessions", [((name,), n) for name, n in sessions])
        fronts = node.fronts
        events = asdict(node.state.counters) if fronts is None else fronts.session_events
        yield family(
            "im_session_events_total", [((event,), count) for event, count in events.items()]
        )
        load, capacity = status["load"], node.config.idc.capacity
        yield family("im_served_share", [((), load["served_share"])])
        yield family("im_breaker_open", [((), load["breaker_open"])])
        yield family("im_limited_total", [((limit,), load[limit]) for limit in _LIMITS])
        yield family("im_capacity_sessions", [((), capacity.sessions)])
        yield family("im_capacity_messages_per_second", [((), capacity.messages_per_s)])
        queues: list[Row] = [((name, ""), n) for name, n in node.state.queued().items()]
        if node.partitions:
            outcomes = asdict(node.im.counters).items()
            yield family("im_messages_total", [((name,), count) for name, count in outcomes])
            pulls = node.im.pulls
            sources = asdict(pulls.counters).items()
            yield family("im_pulls_total", [((name,), count) for name, count in sources])
            found: Counter[str] = Counter()
            for partition in node.partitions:
                found.update(asdict(partition.conversations.found))
            yield family("im_conversations_total", [((name,), n) for name, n in found.items()])
            yield family("im_recent_bytes", [((), pulls.recent.bytes)])
            yield family("im_recent_conversations", [((), len(pulls.recent))])
            queues.append((("sends", ""), node.im.queued()))
            queues.append((("acks", ""), sum(len(p.replication) for p in node.partitions)))
            queues += [(("signals", idc), len(queue)) for idc, queue in node.signals.items()]
        yield family("im_queue_depth", queues)

    def _events(self, gateway: Gateway | FrontLink) -> Mapping[str, int]:
        if isinstance(gateway, Gateway):
            return asdict(gateway.counters)
        fronts = self._node.fronts
        return fronts.gateway_events.get(gateway.port, {}) if fronts is not None else {}

    def _media(self) -> Iterator[Metric]:
        if self._node.media is None:
            return
        store, _ = self._node.media
        counted = asdict(store.counters)
        yield family(
            "im_media_events_total", [((event,), counted[event]) for event in _MEDIA_EVENTS]
        )
        yield family(
            "im_media_transferred_bytes_total",
            [((way,), counted[f"bytes_{way}"]) for way in ("in", "out", "fetched")],
        )
        yield family("im_media_stored_bytes", [((), store.stored)])
        yield family("im_media_copies_bytes", [((), store.copied)])
        yield family("im_media_files", [((), store.files)])
        yield family("im_media_uploads", [((), store.uploads)])

    def _replication(self, status: dict[str, Any]) -> Iterator[Metric]:
        node = self._node
        records, seconds, ages, problems = mirror_rows(status["mirror"])
        for origin, lag in status["lag"].items():
            idc = origin.rpartition(".")[0]
            records.append(((idc, "log", ""), lag["records"]))
            seconds.append(((idc, "kv"), lag["ms"] / 1000))
        unfolded = node.replication.unfolded().items()
        records += [((idc, "kv", ""), n) for idc, n in unfolded if idc != node.idc]
        yield family("im_replication_lag_records", records)
        yield family("im_replication_lag_seconds", seconds)
        yield family("im_mirror_worker_age_seconds", ages)
        yield family("im_mirror_problem", problems)
        heard = node.replication.heard_s(node.clock.now()).items()
        yield family("im_replication_heard_seconds", [((idc,), age) for idc, age in heard])
        ends = status["log"]["ends"]
        held = status["peers_held"].items()
        yield family(
            "im_replication_unheld_records",
            [
                ((idc,), sum(max(0, end - lsn) for end, lsn in zip(ends, lsns, strict=True)))
                for idc, lsns in held
            ],
        )
        yield family("im_log_bytes", [((), status["retention"]["log_bytes"])])
        yield family("im_kv_move", [((), status["kv"]["move"] is not None)])

    def _partitions(self) -> Iterator[Metric]:
        partitions, own = self._node.partitions, self._node.store.own()
        yield family("im_sequencer_epoch", [((p.number,), p.epoch) for p in partitions])
        yield family("im_sequencer_open", [((p.number,), p.open_for_writes) for p in partitions])
        if own is not None:
            yield family("im_log_end", [((p.number,), own.end(p.number).lsn) for p in partitions])
        sizes = {p.number: p.sequencer.sizes() for p in partitions}.items()
        yield family("im_sequencer_lanes", [((n,), lanes) for n, (lanes, _, _) in sizes])
        yield family("im_sequencer_known_cids", [((n,), known) for n, (_, known, _) in sizes])
        yield family("im_sequencer_pending", [((n,), pending) for n, (_, _, pending) in sizes])


class MirrorRows(NamedTuple):
    records: list[Row]
    seconds: list[Row]
    ages: list[Row]
    problems: list[Row]


def mirror_rows(mirror: Mapping[str, Mapping[str, Any]]) -> MirrorRows:
    """``mirror``: of services.engines.kafka.mirror_lag. Of what was never measured there is no
    row. Pure."""
    rows = MirrorRows([], [], [], [])
    for idc, flow in mirror.items():
        rows.problems.append(((idc,), bool(flow["problem"])))
        rows.records.extend(
            ((idc, "mirrormaker2", str(number)), row["behind"])
            for number, row in flow["partitions"].items()
        )
        if flow["heartbeat_age_s"] is not None:
            rows.seconds.append(((idc, "mirrormaker2"), flow["heartbeat_age_s"]))
        if flow["worker_age_s"] is not None:
            rows.ages.append(((idc,), flow["worker_age_s"]))
    return rows


def _transports(gateways: Sequence[tuple[Any, Gateway]]) -> Iterator[Metric]:
    standing = [
        ((name, transport), count)
        for name, gateway in gateways
        for transport, count in gateway.by_transport().items()
    ]
    yield family("im_gateway_transport_connections", standing)
    events = [
        ((name, event), count)
        for name, gateway in gateways
        for event, count in asdict(gateway.quic_counters).items()
    ]
    yield family("im_gateway_quic_total", events)


def _requests(by_role: dict[str, Verbs]) -> Iterator[Metric]:
    found = [
        ((role, name), verb)
        for role, verbs in by_role.items()
        for name, verb in verbs.known.items()
    ]
    yield histogram("im_request_seconds", found)
    failures: list[Row] = []
    for labels, verb in found:
        counts_by_code = dict.fromkeys(map(str, FAULTS), 0) | verb.failures
        failures += [((*labels, code), count) for code, count in counts_by_code.items()]
    yield family("im_request_failures_total", failures)


def _hot(hot: Hot) -> Iterator[Row]:
    for kind in KINDS:
        for rank, row in enumerate(hot.top(kind, HOT_SHOWN), 1):
            yield (kind, rank), row.count
