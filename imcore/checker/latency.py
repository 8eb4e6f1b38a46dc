"""Latencies of a history by phase: ack, and receipt on other devices. One monotonic clock.

A message belongs to the phase in which it was composed.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imcore import history as h


class Summary(NamedTuple):
    """Milliseconds; all 0 when nothing was measured."""

    samples: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def summarize(values_us: Sequence[int]) -> Summary:
    """Exact, by the nearest-rank method."""
    if not values_us:
        return Summary(0, 0.0, 0.0, 0.0)
    ordered = sorted(values_us)

    def rank(percent: int) -> float:
        return ordered[-(-percent * len(ordered) // 100) - 1] / 1000

    return Summary(len(ordered), rank(50), rank(99), ordered[-1] / 1000)


@dataclass(slots=True)
class PhaseLatency:
    name: str
    started: int
    composed: int = 0
    acked: int = 0
    ack_us: array[int] = field(default_factory=lambda: array("q"))
    receive_us: array[int] = field(default_factory=lambda: array("q"))

    def summaries(self) -> tuple[Summary, Summary]:
        """Ack and receipt."""
        return summarize(self.ack_us), summarize(self.receive_us)

    def as_json(self) -> dict[str, object]:
        ack, receive = self.summaries()
        return {
            "name": self.name,
            "composed": self.composed,
            "acked": self.acked,
            "ack": ack._asdict(),
            "receive": receive._asdict(),
        }


class Latencies:
    """``feed`` every event in order; ``phases`` in the order in which they began. Phases of one
    name are one phase."""

    def __init__(self) -> None:
        self._current = PhaseLatency("start", 0)
        self._by_name = {"start": self._current}
        self._composed: dict[str, tuple[int, int, PhaseLatency]] = {}  # tag: (time, device, phase)
        self._acked: set[str] = set()

    @property
    def phases(self) -> list[PhaseLatency]:
        return [phase for phase in self._by_name.values() if phase.composed]

    def feed(self, event: h.Event) -> None:
        if isinstance(event, h.Shown):
            if (composed := self._composed.get(event.tag)) and composed[1] != event.n:
                composed[2].receive_us.append(event.t - composed[0])
        elif isinstance(event, h.Compose):
            self._composed[event.tag] = (event.t, event.n, self._current)
            self._current.composed += 1
        elif isinstance(event, h.Ack):
            composed = self._composed.get(event.tag)
            if composed and event.tag not in self._acked:
                self._acked.add(event.tag)
                composed[2].acked += 1
                composed[2].ack_us.append(event.t - composed[0])
        elif isinstance(event, h.Phase):
            self._current = self._by_name.setdefault(event.name, PhaseLatency(event.name, event.t))
