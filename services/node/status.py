"""The status document of an IDC (docs/status.md): one schema for the CLI, controllers, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imcore.certificates import days_left, expiry_alarms
from imcore.levels import LEVEL
from imcore.pki import utc_now
from services.node.mirror_alarms import silent
from services.node.rates import Rate

if TYPE_CHECKING:
    from services.node.node import Node


class Status:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._started = node.clock.now()
        self._accepted = Rate()
        self._pushed = Rate()

    def sample(self) -> None:
        now = self._node.clock.now()
        self._accepted.sample(now, self._node.im.counters.accepted)
        self._pushed.sample(now, self._node.state.counters.pushed)

    def facts(self) -> dict[str, Any]:
        """The part of the document that controllers judge by (services.control.evidence): theirs
        here thrice a second, those of the other IDCs twice."""
        node = self._node
        started = bool(node.partitions)
        held, applied = node.replication.vectors()
        own = node.store.own()
        peers_held, peers_applied = (
            node.replication.of_own_log(node.origin) if started else ({}, {})
        )
        return {
            "origin": str(node.origin) if started else "",
            "serving": node.serving,
            "sessions": node.state.connected_count(),
            "shards": node.state.shards(),
            "moves": node.traffic.moves_status(),
            "rates": {
                "accepted_per_s": round(self._accepted.per_second(), 1),
                "pushed_per_s": round(self._pushed.per_second(), 1),
            },
            "log": {
                "durability": node.store.durability,
                "ends": [own.end(p.number).lsn for p in node.partitions] if own else [],
            },
            "held": held,
            "applied": applied,
            "announced": node.replication.announced(),
            "peers_held": peers_held,
            "peers_applied": peers_applied,
            "seals": {str(o): list(ends) for o, ends in node.seals.known().items()},
            "published_again": {str(o): count for o, count in node.seals.published.items()},
            "level": LEVEL,
            "lag": self._lag() if started else {},
        }

    def for_peers(self) -> dict[str, Any]:
        """With what only the other IDCs have to know."""
        webhooks = self._node.webhooks
        return self.facts() | {"webhooks_told": webhooks.told() if webhooks is not None else {}}

    def _lag(self) -> dict[str, dict[str, int]]:
        """By the clock of most IDCs: by a slow one of its own what is cut off would not lag."""
        node = self._node
        return node.replication.lag(node.median_clock.wall_ms(), node.clock.now())

    def as_dict(self) -> dict[str, Any]:
        node, facts = self._node, self.facts()
        started = bool(node.partitions)
        return {
            "idc": node.idc,
            "origin": facts.pop("origin"),
            "pid": node.outside.pid,
            "uptime_s": round(node.clock.now() - self._started, 1),
            "serving": facts.pop("serving"),
            "policy": node.traffic.policy_status(),
            "level_written": node.traffic.levels.committed,
            "gateways": [
                {
                    "gateway": g.name,
                    "connections": len(g),
                    "port": g.port,
                    "restarts": g.restarts,
                }
                for g in node.gateways
            ],
            "ipconfs": node.ipconfs.status(),
            "routes": [
                {"route": route.name, "gateways": len(route.fronts)}
                for route in (node.fronts.routes if node.fronts is not None else ())
            ],
            **facts,
            "acks": node.state.acks()._asdict(),
            "totals": {
                "accepted": node.im.counters.accepted if started else 0,
                "pushed": node.state.counters.pushed,
            },
            "load": node.state.load()
            | {
                "turned_away": node.turned_away(),
                "conversations_limited": node.im.load.limited if started else 0,
                "kv_breaker_open": node.im.kv_breaker.is_open if started else False,
                "kv_breaker_opened": node.im.kv_breaker.opened if started else 0,
            },
            "kv": node.kv_engines.status(),
            "mirror": node.mirror_lag.figures() if node.mirror_lag else {},
            "clock": {
                "offset_ms": -node.hlc.median_offset_ms,
                "skewed": node.hlc.skewed(),
            },
            "links_cut": node.cuts.now() if node.cuts is not None else [],
            "links_slow": node.cuts.slow() if node.cuts is not None else [],
            "certificates": self._certificates(),
            "region_keys": self._node.followed_keys.status(),
            "alarms": self._alarms(),
            "retention": node.retention.status(),
            "webhooks": node.webhooks.status() if node.webhooks is not None else {},
            "registries": node.traffic.registries_status(),
        }

    def _certificates(self) -> dict[str, Any]:
        """What new connections are shown."""
        files, now = self._node.certificate, utc_now(self._node.clock.wall_ms())
        files.renewed()
        pair = files.pair
        return {
            "expires": pair.expires.isoformat(),
            "days_left": days_left(pair.expires, now),
            "ca_expires": pair.ca_expires.isoformat(),
            "ca_days_left": days_left(pair.ca_expires, now),
        }

    def _alarms(self) -> list[str]:
        node = self._node
        alarms = [*node.alarms, *node.replication.alarms(), *node.traffic.alarms()]
        alarms += node.retention.alarms()
        alarms += node.store.alarms()
        if node.mirror_lag is not None:
            alarms += silent(node.idc, node.mirror_lag.figures())
        alarms += node.logs_service.alarms()
        if node.media is not None and node.media[0].alarm:
            alarms.append(node.media[0].alarm)
        if node.webhooks is not None:
            alarms += node.webhooks.alarms()
        now = utc_now(node.clock.wall_ms())
        alarms += expiry_alarms(node.certificate.pair, node.idc, now)
        if node.certificate.problem:
            alarms.append(f"a new certificate is not taken: {node.certificate.problem}")
        alarms += [
            said
            for said in (
                node.bootstrap.alarm,
                node.seals.problem,
                node.kv_engines.alarm,
                node.anchoring.alarm,
                node.traffic.levels.alarm,
                node.followed_keys.alarm,
                node.risk.alarm,
            )
            if said
        ]
        alarms += [partition.alarm for partition in node.partitions if partition.alarm]
        if node.hlc.skewed():
            off = -node.hlc.median_offset_ms
            alarms.append(f"the clock is {off} ms off the median of the IDCs and is being clamped")
        return alarms
