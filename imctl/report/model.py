"""The report of a run as values; ``as_json`` is the schema of report.json (docs/report.md)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from imcore.checker import Report as Verdict
from imcore.checker.availability import Availability
from imcore.checker.latency import PhaseLatency, Summary, summarize
from imcore.errors import BadInput
from services.loadgen.population import Population
from services.loadgen.stats import Sample

VERSION = 1


class Promise(NamedTuple):
    """One line that must hold. ``limit`` and ``measured`` are for people, with their units.
    ``repeatable``: a busy machine alone can break it, so that one more run may show it held."""

    name: str
    limit: str
    measured: str
    ok: bool
    repeatable: bool = False


class Mark(NamedTuple):
    """Something that happened, seconds from the start of the load."""

    t: float
    idc: str
    text: str


class Span(NamedTuple):
    """A phase, seconds from the start of the load."""

    name: str
    start: float
    end: float


@dataclass(slots=True)
class Subject:
    """What was run."""

    region: str
    run: str
    started: str
    idcs: list[str]
    victim: str
    seconds: float
    rate: float
    group_rate: float
    users: int
    devices: int
    pairs: int
    crossing: int
    groups: list[int]
    cpus: int
    load_average: float

    @classmethod
    def of(
        cls,
        population: Population,
        *,
        region: str,
        run: str,
        started: str,
        idcs: list[str],
        victim: str,
        seconds: float,
        rate: float,
        group_rate: float,
        load_average: float,
    ) -> Subject:
        """A run of these people on this machine."""
        return cls(
            region=region,
            run=run,
            started=started,
            idcs=idcs,
            victim=victim,
            seconds=seconds,
            rate=rate,
            group_rate=group_rate,
            users=len({client.uid for client in population.clients}),
            devices=len(population.clients),
            pairs=len(population.pairs),
            crossing=population.crossing(),
            groups=[len(group.members) for group in population.groups],
            cpus=os.cpu_count() or 1,
            load_average=load_average,
        )


@dataclass(slots=True)
class RunReport:
    subject: Subject
    verdict: Verdict
    latencies: list[PhaseLatency]
    availability: Availability
    samples: list[Sample]
    marks: list[Mark] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return bool(self.promises) and all(promise.ok for promise in self.promises)

    def lags(self) -> dict[str, Summary]:
        """Replication lag by direction ("fra->iad": fra's log at iad), of the samples of the whole
        run: the fault's too."""
        ways = sorted({way for sample in self.samples for way in sample.lag_ms})
        return {
            way: summarize([round(s.lag_ms[way] * 1000) for s in self.samples if way in s.lag_ms])
            for way in ways
        }

    def as_json(self) -> dict[str, Any]:
        rpo = self.availability.rpo()
        return {
            "report": VERSION,
            "ok": self.ok,
            "subject": asdict(self.subject),
            "promises": [promise._asdict() for promise in self.promises],
            "check": self.verdict.as_json(),
            "latency": [phase.as_json() for phase in self.latencies],
            "lag": {way: lag._asdict() for way, lag in self.lags().items()},
            "outages": [
                {
                    "idc": outage.idc,
                    "affected": len(outage.affected),
                    "recovered": len(outage.recovered),
                    "rto_ms": _ms(outage.rto_us()),
                }
                for outage in self.availability.outages
            ],
            "moves": [
                {
                    "idc": move.idc,
                    "what": move.what,
                    "clients": len(move.to_move),
                    "gap_ms": _ms(move.gap),
                    "moved_ms": _ms(move.moved_us()),
                    "failed_sends": move.failed,
                }
                for move in self.availability.moves
            ],
            "rpo": None if rpo is None else asdict(rpo),
            "marks": [mark._asdict() for mark in self.marks],
            "phases": [span._asdict() for span in self.spans],
            "samples": [sample.as_json() for sample in self.samples],
            "notes": self.notes,
        }


def _ms(us: int | None) -> float | None:
    return None if us is None else us / 1000


def write_text(path: Path, text: str) -> None:
    """Raises BadInput."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")  # whole, or not there
        new.write_text(text)
        new.replace(path)
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}") from error


def write_json(report: RunReport, path: Path) -> None:
    """Raises BadInput."""
    write_text(path, json.dumps(report.as_json(), indent=1) + "\n")
