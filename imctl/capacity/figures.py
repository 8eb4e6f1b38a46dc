"""What one core or gigabyte does: the figures behind the model, each with where it comes from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from imcore.errors import BadInput
from imctl.capacity.quantity import number


class Figure(NamedTuple):
    name: str
    value: float
    unit: str
    meaning: str
    source: str  # of a measurement or limit; why, when it is assumed
    assumed: bool


class Figures(Mapping[str, float]):
    """Values by name; ``figure(name)`` tells the source."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._figures = {figure.name: figure for figure in figures}

    @classmethod
    def of(cls, document: Mapping[str, Mapping[str, Any]]) -> Figures:
        """``document``: as figures.yaml has them."""
        return cls(
            Figure(
                name,
                float(entry["value"]),
                entry["unit"],
                entry["meaning"],
                entry.get("source") or entry["assumed"],
                "assumed" in entry,
            )
            for name, entry in document.items()
        )

    def __getitem__(self, name: str) -> float:
        return self._figures[name].value

    def __iter__(self) -> Any:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def figure(self, name: str) -> Figure:
        return self._figures[name]

    def assumed(self, names: Iterable[str]) -> list[str]:
        """Those of them that nobody measured."""
        return sorted({name for name in names if self._figures[name].assumed})

    def scaled(self, name: str, times: float) -> Figures:
        """With one of them so many times as large. A share stays at most 1; of a factor above 1
        it is what it adds that grows."""
        old = self._figures[name]
        value = old.value * times
        if name in _SHARES:
            value = min(1.0, value)
        elif old.unit == "times" and old.value > 1:
            value = 1 + (old.value - 1) * times
        return Figures((self._figures | {name: old._replace(value=value)}).values())

    def with_(self, given: Mapping[str, object], where: str) -> Figures:
        """With the user's own values. Raises BadInput that names ``where`` they were given."""
        figures = dict(self._figures)
        for name, value in given.items():
            if name not in figures:
                close = difflib.get_close_matches(str(name), figures, n=1)
                do = f"did you mean {close[0]}?" if close else "`imctl size --figures` lists them"
                raise BadInput(f"{where}: expected the name of a figure, got {name!r}; {do}")
            try:
                found = number(value)
            except ValueError as error:
                raise BadInput(f"{where}: {name}: expected {error}, got {value!r}") from None
            if found < 0 or (found == 0 and name in _DIVISORS):
                raise BadInput(f"{where}: {name}: expected more than 0, got {value!r}")
            if found > 1 and name in _SHARES:
                raise BadInput(f"{where}: {name}: expected at most 1, got {value!r}")
            figures[name] = figures[name]._replace(value=found, source=where, assumed=False)
        return Figures(figures.values())


_SHARES = frozenset(("gateway_share", "disk_fill"))
# A limit or a capacity of nothing: no number of machines would do.
_DIVISORS = frozenset(
    (
        "gateway_connections", "process_cores", "partition_mb_s", "broker_mb_s", "broker_replicas",
        "broker_tb", "store_rows_s", "store_tb", "disk_fill",
    )
)  # fmt: skip
