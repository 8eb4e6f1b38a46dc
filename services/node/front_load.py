"""What a front tells its core twice a second: how loaded it is, and what it has counted since."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from imcore.proto import front_pb2 as front
from services.gateway.server import Gateway
from services.metrics.verbs import Verbs
from services.state.server import StateServer


class LoadReport:
    """``verbs``: by role, what requests took; it goes to the core, and begins anew here."""

    def __init__(self, state: StateServer, verbs: Mapping[str, Verbs]) -> None:
        self._state = state
        self._verbs = verbs
        self._said: Counter[str] = Counter()  # counts since the start, as the core knows them
        self._session_events: Counter[str] = Counter()
        self._gateway_events: Counter[str] = Counter()

    def make(self, gateway: Gateway | None) -> front.Load:
        state = self._state
        load, queued = state.load(), state.queued()
        now = Counter(
            pushed=state.counters.pushed,
            overloaded=int(load["overloaded"]),
            shed=int(load["shed"]),
            breaker_opened=int(load["breaker_opened"]),
            turned_away=gateway.counters.refused if gateway is not None else 0,
        )
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
        for name, count in (now - self._said).items():
            setattr(report, name, count)
        self._said = now
        if self._verbs:
            self._count(report, gateway)
        return report

    def _count(self, report: front.Load, gateway: Gateway | None) -> None:
        sessions = Counter(asdict(self._state.counters))
        report.session_events.update(sessions - self._session_events)
        self._session_events = sessions
        if gateway is not None:
            events = Counter(asdict(gateway.counters))
            report.gateway_events.update(events - self._gateway_events)
            self._gateway_events = events
        for role, verbs in self._verbs.items():
            for name, verb in verbs.known.items():
                if any(verb.buckets):
                    taken = verb.taken()
                    report.verbs.add(
                        role=role, verb=name, buckets=taken.buckets, seconds=taken.seconds,
                        failures=taken.failures,
                    )  # fmt: skip
