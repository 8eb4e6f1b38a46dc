"""What takes longer than it usually does: steps of operations, and sessions that were told to move.

Usual is the 75th percentile (nearest rank) of those before, times a factor: the slowest quarter
may itself have been stuck. With few samples a default stands; a floor keeps what is always quick
from being called slow for a second more. Times in ms. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from services.control.operations import Operation
from services.control.rules import Kind
from services.policy.document import OperationState

FACTOR = 2.0
SAMPLES_MIN = 3
STEP_DEFAULT_MS = 60_000  # also `safety.stall_ms`: nothing came nearer for so long
STEP_FLOOR_MS = 5_000
_WORK = frozenset({Kind.DRAIN, Kind.SWITCHOVER, Kind.FAILBACK})
_INTERRUPTS = frozenset({Kind.PAUSE, Kind.STALL, Kind.ABORT, Kind.UNDRAIN, Kind.FAILOVER})


class Usual(NamedTuple):
    """``limit_ms``: what takes longer is slow. ``samples`` below ``SAMPLES_MIN``: a default."""

    limit_ms: int
    samples: int


class Took(NamedTuple):
    """How long a step lasted: from its commit to that of the next, or until now. ``whole``: its
    work was done by then; else it runs still, or was paused, aborted or overtaken."""

    step: int
    name: str
    ms: int
    over: bool
    whole: bool


class Slow(NamedTuple):
    """A step, by its place in the operation, that runs or ran longer than usual."""

    took: Took
    usual: Usual

    def sentence(self) -> str:
        verb = "took" if self.took.over else "has run for"
        of = f"{self.usual.samples} earlier" if self.usual.samples >= SAMPLES_MIN else "no samples"
        return (
            f"slow: {self.took.name} {verb} {self.took.ms / 1000:.1f} s, "
            f"limit {self.usual.limit_ms / 1000:.1f} s ({of})"
        )


def p75(samples: Iterable[int]) -> int:
    """Nearest rank; of at least one."""
    ordered = sorted(samples)
    return ordered[math.ceil(0.75 * len(ordered)) - 1]


def usual(samples: Sequence[int], default_ms: int, floor_ms: int) -> Usual:
    if len(samples) < SAMPLES_MIN:
        return Usual(max(default_ms, floor_ms), len(samples))
    return Usual(max(round(p75(samples) * FACTOR), floor_ms), len(samples))


def lasted(operation: Operation, now_ms: int) -> list[Took]:
    """Its steps that work is done in. A pause and a wait for approval last as long as people
    take; of what is resumed a part was done before, so it is judged but no sample. What happens
    to other IDCs meanwhile (one is recovering) stands in the record and interrupts nothing."""
    found: list[Took] = []
    doing, resumed = "", False
    began: tuple[int, int] | None = None  # place and time of the step that is being done
    for number, step in enumerate(operation.steps):
        works = step.name in _WORK or _is_ramp(step.name)
        if not (works or step.name in _INTERRUPTS or step.name in (Kind.DRAINED, Kind.RESUME)):
            continue
        if began is not None:
            done = step.name == Kind.DRAINED or _is_ramp(step.name)
            ms = max(0, step.at_ms - began[1])
            found.append(Took(began[0], doing, ms, over=True, whole=done and not resumed))
        resumed = step.name == Kind.RESUME
        doing = step.name if works else doing
        began = (number, step.at_ms) if works or (resumed and doing) else None
    if began is not None and operation.state is OperationState.RUNNING:
        ms = max(0, now_ms - began[1])
        found.append(Took(began[0], doing, ms, over=False, whole=False))
    return found


def slow_steps(operation: Operation, known: Iterable[Operation], now_ms: int) -> list[Slow]:
    """Those of this operation, against whole steps of the same name in operations that began
    before it (others of ``known`` are left out)."""
    before: dict[str, list[int]] = {}
    for each in known:
        if each.id != operation.id and each.started_ms <= operation.started_ms:
            for took in lasted(each, now_ms):
                if took.whole:
                    before.setdefault(took.name, []).append(took.ms)
    judged = [
        Slow(took, usual(before.get(took.name, []), STEP_DEFAULT_MS, STEP_FLOOR_MS))
        for took in lasted(operation, now_ms)
    ]
    return [slow for slow in judged if slow.took.ms > slow.usual.limit_ms]


def _is_ramp(name: str) -> bool:
    return name.startswith(f"{Kind.RAMP}-")
