"""What a front tells its core twice a second: how loaded it is, and what it has counted since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from imcore.proto import front_pb2 as front
from services.gateway.server import Gateway
from services.metrics.verbs import Verbs
from services.node.verb_counts import verb_count
from services.state.server import StateServer


class _News:
    """Of counts since the start: what came since they were asked for last."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()

    def of(self, counts: Mapping[str, int]) -> Counter[str]:
        now = Counter(counts)
        before, self._told = self._told, now
        return now - before


class LoadReport:
    """``verbs``: by role, what requests took; it goes to the core, and begins anew here."""

    def __init__(self, state: StateServer, verbs: Mapping[str, Verbs]) -> None:
        self._state = state
        self._verbs = verbs
        self._counts, self._session_events, self._gateway_events = _News(), _News(), _News()

    def make(self, gateway: Gateway | None) -> front.Load:
        state = self._state
        load, queued = state.load(), state.queued()
        counts = {
            "pushed": state.counters.pushed,
            "overloaded": int(load["overloaded"]),
            "shed": int(load["shed"]),
            "breaker_opened": int(load["breaker_opened"]),
            "turned_away": gateway.counters.refused if gateway is not None else 0,
        }
        report = front.Load(
            connections=len(gateway) if gateway is not None else 0,
            pull_only=state.pull_only_count(),
            served_share=load["served_share"],
            breaker_open=bool(load["breaker_open"]),
            connects=queued["connects"],
            requests=queued["requests"],
            acks=state.ack_buckets(),
            waiting=state.waiting(),
        )
        for name, count in self._counts.of(counts).items():
            setattr(report, name, count)
        if self._verbs:
            self._count(report, gateway)
        return report

    def _count(self, report: front.Load, gateway: Gateway | None) -> None:
        report.session_events.update(self._session_events.of(asdict(self._state.counters)))
        if gateway is not None:
            report.gateway_events.update(self._gateway_events.of(asdict(gateway.counters)))
        for role, verbs in self._verbs.items():
            for name, counted in verbs.taken().items():
                report.verbs.append(verb_count(role, name, counted))
