"""Line charts over one time axis, as SVG text. Pure; colours are CSS variables of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from imctl.report.model import Mark, Span

WIDTH, HEIGHT = 1000, 170
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 22
STATE_HEIGHT = 22
_NUMBER_WIDTH, _LINE_HEIGHT, _LEVELS = 16, 11, 4  # of the marks' numbers, px


@dataclass(frozen=True, slots=True)
class Line:
    """``points``: (seconds, value); a None breaks the line. ``colour``: a CSS variable's name."""

    name: str
    colour: str
    points: Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Axis:
    """What all charts of a page share."""

    seconds: float
    spans: Sequence[Span]
    marks: Sequence[Mark]

    def x(self, t: float) -> float:
        inner = WIDTH - LEFT - RIGHT
        return LEFT + inner * min(1.0, max(0.0, t / max(self.seconds, 1e-9)))


def chart(axis: Axis, lines: Sequence[Line], unit: str, logarithmic: bool = False) -> str:
    """One panel with its own y scale from 0 (or a power of ten) to a round figure."""
    values = [value for line in lines for _, value in line.points if value is not None]
    scale = _log_scale(values) if logarithmic else _linear_scale(values)
    parts = [_background(axis, HEIGHT)]
    for tick in scale.ticks:
        y = scale.y(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for line in lines:
        parts.extend(
            f'<path class="line" style="stroke:var(--{line.colour})" d="{path}"/>'
            for path in _paths(axis, scale, line.points)
        )
    parts += [_time_ticks(axis, HEIGHT), _marks(axis, HEIGHT)]
    keys = "".join(
        f'<span class="key"><i style="background:var(--{line.colour})"></i>'
        f"{escape(line.name)}</span>"
        for line in lines
    )
    return (
        f'<div class="keys">{keys}<span class="unit">{escape(unit)}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" class="chart" role="img">{"".join(parts)}</svg>'
    )


def lanes(axis: Axis, states: Sequence[tuple[str, Sequence[tuple[float, str]]]]) -> str:
    """One lane per IDC, coloured by its state; (seconds, state) at each change."""
    height = TOP + STATE_HEIGHT * len(states) + BOTTOM
    parts = []
    for row, (idc, changes) in enumerate(states):
        y = TOP + row * STATE_HEIGHT
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 14}" text-anchor="end">{escape(idc)}</text>'
        )
        ends = [*(t for t, _ in changes[1:]), axis.seconds][: len(changes)]
        for (start, state), end in zip(changes, ends, strict=True):
            x, width = axis.x(start), axis.x(end) - axis.x(start)
            parts.append(
                f'<rect class="state s-{escape(state)}" x="{x:.1f}" y="{y}" width="{width:.1f}" '
                f'height="{STATE_HEIGHT - 4}"><title>{escape(idc)}: {escape(state)} from '
                f"{start:.0f} s to {end:.0f} s</title></rect>"
            )
            if width > 7 * len(state):
                parts.append(
                    f'<text class="label" x="{x + 4:.1f}" y="{y + 13}">{escape(state)}</text>'
                )
    parts += [_time_ticks(axis, height), _marks(axis, height)]
    return f'<svg viewBox="0 0 {WIDTH} {height}" class="chart" role="img">{"".join(parts)}</svg>'


# ------------------------------------------------------------------------------- scales


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool

    def y(self, value: float) -> float:
        if self.logarithmic:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = value / self.high
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _linear_scale(values: Sequence[float]) -> _Scale:
    top = max([*values, 1e-9])
    step: float = 10 ** math.floor(math.log10(top))
    for factor in (0.2, 0.5, 1, 2.5):
        if top / (step * factor) <= 5:
            step *= factor
            break
    count = max(1, math.ceil(top / step))
    return _Scale(0, step * count, [step * n for n in range(count + 1)], False)


def _log_scale(values: Sequence[float]) -> _Scale:
    positive = [value for value in values if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive)))
    high = max(low + 1, math.ceil(math.log10(max(positive))))
    return _Scale(10.0**low, 10.0**high, [10.0**n for n in range(low, high + 1)], True)


# ------------------------------------------------------------------------------- parts


def _paths(axis: Axis, scale: _Scale, points: Sequence[tuple[float, float | None]]) -> list[str]:
    paths: list[str] = []
    current: list[str] = []
    for t, value in points:
        if value is None or (scale.logarithmic and value <= 0):
            if current:
                paths.append("M" + "L".join(current))
            current = []
        else:
            current.append(f"{axis.x(t):.1f},{scale.y(value):.1f}")
    if current:
        paths.append("M" + "L".join(current))
    return paths


def _background(axis: Axis, height: int) -> str:
    """Every second phase is shaded."""
    parts = []
    for number, span in enumerate(axis.spans):
        if number % 2:
            x, width = axis.x(span.start), axis.x(span.end) - axis.x(span.start)
            parts.append(
                f'<rect class="span" x="{x:.1f}" y="{TOP}" width="{width:.1f}" '
                f'height="{height - TOP - BOTTOM}"/>'
            )
    return "".join(parts)


def _time_ticks(axis: Axis, height: int) -> str:
    step = next((s for s in (5, 10, 20, 30, 60, 120, 300, 600) if axis.seconds / s <= 12), 1200)
    return "".join(
        f'<text class="tick" x="{axis.x(t):.1f}" y="{height - 6}" text-anchor="middle">{t} s</text>'
        for t in range(0, int(axis.seconds) + 1, step)
    )


def _marks(axis: Axis, height: int) -> str:
    """A line for each mark, with its number in the list below the charts. Numbers that would cover
    each other stand one below the other."""
    parts = []
    level, free = 0, 0.0
    for number, mark in enumerate(axis.marks, start=1):
        x = axis.x(mark.t)
        level = (level + 1) % _LEVELS if x < free else 0
        free = x + _NUMBER_WIDTH
        parts.append(
            f'<g class="mark"><line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
            f'<text x="{x + 3:.1f}" y="{TOP + 9 + _LINE_HEIGHT * level}">{number}</text>'
            f"<title>{mark.t:.1f} s: {escape(mark.text)}</title></g>"
        )
    return "".join(parts)
