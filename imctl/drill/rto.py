"""The recovery time of a lost IDC, step by step. Pure; all in seconds since the fault."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from imcore.checker.availability import Outage
from imctl.drill.watch import Accusation

STEPS = (
    "detected", "decided", "committed", "first moved", "50 % moved", "90 % moved", "99 % moved",
    "99 % answered", "steady",
)  # fmt: skip
# A vote tells for how long its evidence has held, and is dated by when it was asked for: what began
# right after the fault may seem to have begun so much before it.
EARLY_MS = 500


class Recovery(NamedTuple):
    """``steps``: each of STEPS, None where it did not happen."""

    idc: str
    affected: int
    answered: int
    steps: dict[str, float | None]

    def rto_s(self) -> float | None:
        return self.steps["99 % answered"]


def quantile_s(times_us: Iterable[int], of: int, percent: int, start_us: int) -> float | None:
    """When so many per cent of ``of`` had come; None: never. Nearest rank."""
    ordered = sorted(times_us)
    needed = -(-percent * of // 100)
    if not of or len(ordered) < needed:
        return None
    return (ordered[max(0, needed - 1)] - start_us) / 1e6


def recovery(
    outage: Outage,
    fault_ms: int,
    accusation: Accusation,
    committed_ms: int | None,
    steady_s: float | None,
) -> Recovery:
    """``fault_ms``, ``committed_ms``: on the wall clock. What is not of this loss (a vote of an
    earlier one, say) lies before it and is left out."""
    affected, start = len(outage.affected), outage.started

    def since(wall_ms: int | None, early_ms: int = 0) -> float | None:
        if wall_ms is None or wall_ms < fault_ms - early_ms:
            return None
        return max(0, wall_ms - fault_ms) / 1000

    moved = list(outage.moved.values())
    rto_us = outage.rto_us() if affected else None
    values = (
        since(accusation.detected_ms, EARLY_MS),
        since(accusation.decided_ms) if committed_ms else None,
        since(committed_ms),
        (min(moved) - start) / 1e6 if moved else None,
        quantile_s(moved, affected, 50, start),
        quantile_s(moved, affected, 90, start),
        quantile_s(moved, affected, 99, start),
        None if rto_us is None else rto_us / 1e6,
        steady_s,
    )
    steps = dict(zip(STEPS, values, strict=True))
    return Recovery(outage.idc, affected, len(outage.recovered), steps)
