"""Numbers as people write and read them: 18M, 1e9, 1 PB, 12.3 Gbit/s."""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"^\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*([kKMGBT]?)\s*$")
_TIMES = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12}
_COUNTS = [(1e12, "tn"), (1e9, "bn"), (1e6, "M"), (1e3, "k")]
_STEPS = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]


def number(value: object) -> float:
    """``18M``, ``1e9``, ``2.5`` or a number; B is a billion, as G is.

    Raises ValueError with what was expected.
    """
    if isinstance(value, bool):
        raise ValueError("a number such as 18M, 1e9 or 2.5")
    if isinstance(value, int | float):
        found = float(value)
    else:
        match = _NUMBER.match(str(value))
        if match is None:
            raise ValueError("a number such as 18M, 1e9 or 2.5")
        found = float(match[1].replace("_", "")) * _TIMES[match[2]]
    if not math.isfinite(found):
        raise ValueError("a finite number")
    return found


def short(value: float, unit: str = "") -> str:
    """Three digits: 18M msg/s, 1.00 PB, 432, 0.31 s. ``unit`` takes the SI prefix if it is of
    bytes or bits; a bare count takes its own; long times are minutes and hours."""
    if unit == "s" and value >= 120:
        return f"{_three(value / 3600)} h" if value >= 7200 else f"{_three(value / 60)} min"
    prefixed = unit[:1] in ("B", "b")
    for size, prefix in _STEPS if prefixed else _COUNTS:
        if abs(value) >= size * 0.9995:
            scaled = _three(value / size)
            return f"{scaled} {prefix}{unit}" if prefixed else f"{scaled}{prefix} {unit}".rstrip()
    return f"{_three(value)} {unit}".rstrip()


def _three(value: float) -> str:
    if value == round(value) and abs(value) < 1000:
        return f"{value:.0f}"
    value = float(f"{value:.3g}")
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 4)}f}"


def whole(value: float) -> int:
    """The next whole number, at least 1; what is whole but for rounding is that one."""
    return max(1, math.ceil(value - value * 1e-9))
