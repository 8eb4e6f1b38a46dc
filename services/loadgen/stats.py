"""Figures by the second, for the live view and the report's timeline. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field

from imcore.checker.latency import Summary, summarize
from services.loadgen.recorder import Recorder


@dataclass(slots=True)
class Sample:
    """One second. ``t``: seconds since the load's start; rates per second; latencies in ms."""

    t: float
    offered: float = 0.0
    acked: float = 0.0
    group_acked: float = 0.0  # of these, to groups
    failed: float = 0.0
    deliveries: float = 0.0
    ack_p50_ms: float = 0.0
    ack_p99_ms: float = 0.0
    receive_p50_ms: float = 0.0
    receive_p99_ms: float = 0.0
    waiting: int = 0  # sends that have not been answered yet
    behind_ms: float = 0.0  # how late the generator itself is
    connections: dict[str, int] = field(default_factory=dict)  # by IDC; "" is not connected
    lag_ms: dict[str, float] = field(default_factory=dict)  # "fra->iad": fra's log at iad
    states: dict[str, str] = field(default_factory=dict)  # of the IDCs, as the policy says

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Sampler:
    """Differences of the recorder's counters from one call to the next."""

    def __init__(self, recorder: Recorder, start: float) -> None:
        self._recorder = recorder
        self._start = start
        self._last = (start, 0, 0, 0, 0, 0)
        self.samples: list[Sample] = []

    def take(self, now: float, waiting: int, behind_s: float) -> Sample:
        recorder = self._recorder
        counts = recorder.counts
        then, composed, acked, groups, failed, shown = self._last
        seconds = max(1e-6, now - then)
        ack, receive = self._latencies()
        sample = Sample(
            t=now - self._start,
            offered=(counts.composed - composed) / seconds,
            acked=(counts.acked - acked) / seconds,
            group_acked=(counts.group_acked - groups) / seconds,
            failed=(counts.failed - failed) / seconds,
            deliveries=(counts.shown - shown) / seconds,
            ack_p50_ms=ack.p50_ms,
            ack_p99_ms=ack.p99_ms,
            receive_p50_ms=receive.p50_ms,
            receive_p99_ms=receive.p99_ms,
            waiting=waiting,
            behind_ms=behind_s * 1000,
            connections=dict(sorted(Counter(recorder.where.values()).items())),
        )
        self._last = (
            now,
            counts.composed,
            counts.acked,
            counts.group_acked,
            counts.failed,
            counts.shown,
        )
        self.samples.append(sample)
        return sample

    def _latencies(self) -> tuple[Summary, Summary]:
        recorder = self._recorder
        both = summarize(recorder.ack_us), summarize(recorder.receive_us)
        recorder.ack_us.clear()
        recorder.receive_us.clear()
        return both
