"""How a drill's results spread over simulated seeds, as a table of at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imctl.drill.spread import QUANTILES, Seed, Spread, not_passed, outcomes, spreads

NOT_PASSED_MAX = 20


def view(name: str, seeds: Sequence[Seed]) -> RenderableType:
    bad = not_passed(seeds)
    parts: list[RenderableType] = [
        Text(headline(name, seeds), style="bold red" if bad else "bold green"),
        _table(spreads(seeds)),
    ]
    parts += [
        Text(f"seed {seed.seed}: {seed.outcome}: {seed.reason}", style="red")
        for seed in bad[:NOT_PASSED_MAX]
    ]
    if len(bad) > NOT_PASSED_MAX:
        left = ", ".join(str(seed.seed) for seed in bad[NOT_PASSED_MAX:])
        parts.append(Text(f"and seeds {left}", style="red"))
    if bad:
        again = f"imctl drill simulate {name} --from {bad[0].seed} --seeds 1"
        parts.append(Text(f"to repeat: {again}"))
    return Group(*parts)


def headline(name: str, seeds: Sequence[Seed]) -> str:
    said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes(seeds).items())
    simulated_min = sum(seed.simulated_s for seed in seeds) / 60
    return (
        f"{name}: {said}; seeds {seeds[0].seed} to {seeds[-1].seed}, {simulated_min:.1f} simulated "
        "minutes"
    )


def _table(found: Sequence[Spread]) -> Table:
    """Seconds since the fault, or since the move was asked for; messages without a fraction."""
    table = Table(box=None, pad_edge=False)
    table.add_column("OF", overflow="fold")
    table.add_column("METRIC", no_wrap=True)
    for name, _ in QUANTILES:
        table.add_column(name.upper(), justify="right", no_wrap=True)
    table.add_column("SEEDS", justify="right", no_wrap=True)
    of = ""
    for one in found:
        unit = " (s)" if one.unit == "s" else ""
        cells = [_cell(one, one.at[name]) for name, _ in QUANTILES]
        table.add_row(one.of if one.of != of else "", f"{one.figure}{unit}", *cells, str(one.n))
        of = one.of
    return table


def _cell(one: Spread, value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value:.2f}" if one.unit == "s" else f"{value:.0f}"
