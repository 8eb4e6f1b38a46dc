"""Figures of two things, measured several times in turn, side by side with their ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Figures = Mapping[str, float]  # name -> value; a name that is missing could not be measured
MORE_IS_BETTER = "/s"  # how the names of rates end; of everything else less is better


def best(name: str, runs: Sequence[Figures]) -> float | None:
    """Of all runs: what disturbs a run makes its figures only worse."""
    values = [run[name] for run in runs if name in run]
    if not values:
        return None
    return max(values) if name.endswith(MORE_IS_BETTER) else min(values)


def ratio(below: float | None, above: float | None) -> str:
    """``above / below``; a dash where that says nothing."""
    if below is None or above is None or below <= 0 or not math.isfinite(above / below):
        return "-"
    return f"{above / below:.2f}"


def lines(columns: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Two columns; each shows its runs in the order in which they were made, and the last one is
    the ratio of the second's best to the first's."""
    (left, lefts), (right, rights) = columns.items()
    names = dict.fromkeys(name for run in (*lefts, *rights) for name in run)
    wide = max(map(len, names), default=0)
    cell = max(len(left), len(right), 12 * max(len(lefts), len(rights)))
    rows = [f"  {'':{wide}}  {left:>{cell}}  {right:>{cell}}  {'ratio':>7}"]
    for name in names:
        ratio_ = ratio(best(name, lefts), best(name, rights))
        shown = [
            "".join(f"{_value(run.get(name)):>12}" for run in runs) for runs in (lefts, rights)
        ]
        rows.append(f"  {name:{wide}}  {shown[0]:>{cell}}  {shown[1]:>{cell}}  {ratio_:>7}")
    return rows


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"
