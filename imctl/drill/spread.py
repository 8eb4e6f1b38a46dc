"""How a drill's figures spread over simulated seeds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from imctl.drill.rto import STEPS
from imctl.report.drill import DrillReport, Recovered

ERROR = "error"
QUANTILES = (("min", 0), ("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))


class Moved(NamedTuple):
    """A planned move: the longest wait for an ack over it, and until the last client had moved
    (None: some never did). Seconds."""

    idc: str
    gap_s: float
    moved_s: float | None


@dataclass(frozen=True, slots=True)
class Seed:
    """What came of one. ``delayed``, ``lost``: of the ``looked_at`` messages that were acked before
    the first loss, what no survivor could serve right after it; all 0 when nobody looked. Of the
    canaries: over the whole run. ``real_s``: of this machine, and no part of the result."""

    seed: int
    outcome: str
    reason: str
    findings: tuple[str, ...]
    losses: tuple[Recovered, ...]
    moves: tuple[Moved, ...]
    looked_at: int
    delayed: int
    lost: int
    canaries_delayed: int
    canaries_lost: int
    acked: int
    failed_sends: int
    simulated_s: float
    digest: str
    real_s: float = field(default=0.0, compare=False)

    @staticmethod
    def broken(seed: int, reason: str, simulated_s: float, digest: str) -> Seed:
        """The simulation itself did not work: nothing is known of the drill."""
        return Seed(
            seed, ERROR, reason, (), (), (), 0, 0, 0, 0, 0, 0, 0, round(simulated_s, 3), digest
        )

    @staticmethod
    def of(seed: int, report: DrillReport, simulated_s: float, real_s: float, digest: str) -> Seed:
        run = report.run
        rpo = run.availability.rpo()
        counts = run.verdict.counts
        entries = list(report.ledger.values())
        return Seed(
            seed=seed,
            outcome=report.outcome,
            reason=report.reason,
            findings=tuple(found.sentence for found in report.findings),
            losses=tuple(report.recoveries),
            moves=tuple(
                Moved(
                    move.idc, move.gap / 1e6, None if (us := move.moved_us()) is None else us / 1e6
                )
                for move in run.availability.moves
                if move.what == "switchover"
            ),
            looked_at=rpo.looked_at if rpo else 0,
            delayed=rpo.delayed if rpo else 0,
            lost=rpo.lost if rpo else 0,
            canaries_delayed=sum(entry.delayed for entry in entries),
            canaries_lost=sum(entry.lost for entry in entries),
            acked=counts.acked,
            failed_sends=counts.failed,
            simulated_s=round(simulated_s, 3),
            digest=digest,
            real_s=real_s,
        )

    def as_json(self) -> dict[str, Any]:
        """Of what is the seed's: the same wherever and however often it is run."""
        return {
            "seed": self.seed,
            "outcome": self.outcome,
            "reason": self.reason,
            "findings": list(self.findings),
            "losses": [one._asdict() for one in self.losses],
            "moves": [one._asdict() for one in self.moves],
            "looked_at": self.looked_at,
            "delayed": self.delayed,
            "lost": self.lost,
            "canaries_delayed": self.canaries_delayed,
            "canaries_lost": self.canaries_lost,
            "acked": self.acked,
            "failed_sends": self.failed_sends,
            "simulated_s": self.simulated_s,
            "trace": self.digest,
        }


class Spread(NamedTuple):
    """Of one figure. ``n``: seeds in which there was something to measure; ``never``: of these,
    where it did not happen. ``at``: by the names of QUANTILES, nearest rank; None: never."""

    of: str
    figure: str
    unit: str
    n: int
    never: int
    at: dict[str, float | None]


def spread(of: str, figure: str, unit: str, values: Sequence[float | None]) -> Spread:
    """What never happened counts as longer than everything that did."""
    happened = sorted(value for value in values if value is not None)
    ordered = [*happened, *[None] * (len(values) - len(happened))]

    def rank(percent: int) -> float | None:
        value = ordered[max(0, -(-percent * len(ordered) // 100) - 1)]
        return None if value is None else round(value, 3)

    at = {name: rank(percent) for name, percent in QUANTILES} if ordered else {}
    return Spread(of, figure, unit, len(values), len(values) - len(happened), at)


def spreads(seeds: Sequence[Seed]) -> list[Spread]:
    """Each loss with its steps, each planned move, then what was delayed and lost. A second loss of
    one IDC, or move from it, is told from the first."""
    found: list[Spread] = []
    seeds = [seed for seed in seeds if seed.outcome != ERROR]
    for name, losses in _numbered([[(one.idc, one) for one in seed.losses] for seed in seeds]):
        found += [spread(name, step, "s", [one.steps[step] for one in losses]) for step in STEPS]
    for name, moves in _numbered([[(one.idc, one) for one in seed.moves] for seed in seeds]):
        found.append(spread(f"from {name}", "gap", "s", [one.gap_s for one in moves]))
        found.append(spread(f"from {name}", "all moved", "s", [one.moved_s for one in moves]))
    looked = [seed for seed in seeds if seed.looked_at]
    counted: list[tuple[str, str, list[float | None]]] = [
        ("RPO", "delayed", [seed.delayed for seed in looked]),
        ("RPO", "lost", [seed.lost for seed in looked]),
        ("canaries", "delayed", [seed.canaries_delayed for seed in seeds]),
        ("canaries", "lost", [seed.canaries_lost for seed in seeds]),
        ("sends", "failed", [seed.failed_sends for seed in seeds]),
    ]
    found += [spread(of, figure, "messages", values) for of, figure, values in counted]
    return [one for one in found if one.n]


def _numbered(by_seed: list[list[tuple[str, Any]]]) -> Iterator[tuple[str, list[Any]]]:
    """By IDC and how often it had been its turn before."""
    found: dict[str, list[Any]] = {}
    for rows in by_seed:
        turns: Counter[str] = Counter()
        for idc, one in rows:
            turns[idc] += 1
            name = idc if turns[idc] == 1 else f"{idc} ({turns[idc]})"
            found.setdefault(name, []).append(one)
    yield from found.items()


def outcomes(seeds: Sequence[Seed]) -> dict[str, int]:
    return dict(sorted(Counter(seed.outcome for seed in seeds).items()))


def not_passed(seeds: Sequence[Seed]) -> list[Seed]:
    return [seed for seed in seeds if seed.outcome != "pass"]


def document(
    name: str, title: str, values: Mapping[str, Any], seeds: Sequence[Seed]
) -> dict[str, Any]:
    """For -o json: the same for the same seeds."""
    return {
        "drill": name,
        "title": title,
        "variables": dict(values),
        "from": seeds[0].seed,
        "seeds": len(seeds),
        "outcomes": outcomes(seeds),
        "spreads": [one._asdict() for one in spreads(seeds)],
        "runs": [seed.as_json() for seed in seeds],
    }
