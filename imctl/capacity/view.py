"""A sizing as tables: sections that fit 80 columns, on the screen and in docs/capacity.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from imctl.capacity.quantity import short
from imctl.capacity.result import Doubled, Driver, Engine, Line, Role, Sizing

ASSUMED = "~"
DRIVERS_SHOWN = 8


class Section(NamedTuple):
    title: str
    columns: Sequence[str]  # a column whose name ends in ">" stands on the right
    rows: list[list[str]]
    explains: list[str]  # a formula for each row, or none


def sections(sizing: Sizing) -> list[Section]:
    found = [
        _lines("Load", sizing.load),
        _roles(sizing.roles),
        _engines(sizing),
        _lines("Network", sizing.network),
        _lines("Storage", sizing.storage),
        _lines(f"Error budget at {sizing.inputs.availability * 100:.10g} %", sizing.budget),
        _drivers("CPU cores by cause, at peak", sizing.cores_by),
        _drivers("Disk by cause", sizing.disk_by),
    ]
    if sizing.sensitivity:
        title = "Sensitivity: each result's factor if an input doubles"
        found.append(_times_as_much(title, "INPUT DOUBLED", sizing.sensitivity))
    if sizing.assumptions:
        title = "Sensitivity: each result's factor if an assumed figure is wrong by 2x"
        found.append(_times_as_much(title, "FIGURE", sizing.assumptions))
    return found


def total(sizing: Sizing) -> str:
    totals = sizing.totals
    return (
        f"All {sizing.inputs.idcs} IDCs: {short(totals.cores)} cores, "
        f"{short(totals.memory_gib * 2**30, 'B')} of memory, {short(totals.disk_bytes, 'B')} of "
        "disk."
    )


def legend(sizing: Sizing) -> str:
    survive = sizing.inputs.surviving
    return (
        f"{ASSUMED} depends on an assumed figure, see --figures. ONE LOST: load of a surviving "
        f"IDC when {survive} of {sizing.inputs.idcs} IDCs carry everything."
    )


def _value(line: Line) -> str:
    return ("~ " if line.assumed else "") + short(line.value, line.unit)


def _lines(title: str, lines: list[Line]) -> Section:
    rows = [[line.label, _value(line)] for line in lines]
    return Section(title, ("", "VALUE>"), rows, [line.formula for line in lines])


def _roles(roles: list[Role]) -> Section:
    columns = (
        "ROLE", "PER IDC>", "ALL>", "CORES>", "MEMORY>", "AT PEAK>", "ONE LOST>", "BOUND BY",
    )  # fmt: skip
    rows = [
        [
            role.name,
            _count(role),
            f"{role.all:,}",
            f"{role.cores:g}",
            short(role.memory_gib * 2**30, "B"),
            _percent(role.use_at_peak),
            _percent(role.use_after_loss),
            role.bound_by,
        ]
        for role in roles
    ]
    return Section("Roles (cores and memory per process)", columns, rows, _formulas(roles))


def _engines(sizing: Sizing) -> Section:
    engines, partitions = sizing.engines, sizing.partitions
    [im] = [role.per_idc for role in sizing.roles if role.name == "im"]
    columns = ("ENGINE", "PER IDC>", "ALL>", "CORES>", "MEMORY>", "BOUND BY")
    rows = [
        [
            engine.name,
            _count(engine),
            f"{engine.all:,}",
            f"{engine.cores:g}",
            short(engine.memory_gib * 2**30, "B"),
            engine.bound_by,
        ]
        for engine in engines
    ]
    mark = "~ " if partitions.assumed else ""
    bound = "im processes" if partitions.value <= im else "MB/s"
    rows.append(["partitions", f"{mark}{partitions.value:,.0f}", "", "", "", bound])
    formulas = [*_formulas(engines), partitions.formula]
    return Section("Engines (cores and memory per machine)", columns, rows, formulas)


def _formulas(machines: Sequence[Engine]) -> list[str]:
    return [each.formula for each in machines]


def _count(each: Engine) -> str:
    return ("~ " if each.assumed else "") + f"{each.per_idc:,}"


def _drivers(title: str, drivers: list[Driver]) -> Section:
    rows = [
        [driver.name, short(driver.value, driver.unit), _percent(driver.share)]
        for driver in drivers
        if driver.value > 0
    ]
    return Section(title, ("", "VALUE>", "SHARE>"), rows[:DRIVERS_SHOWN], [])


def _times_as_much(title: str, what: str, rows_of: list[Doubled]) -> Section:
    columns = (what, "CORES>", "MEMORY>", "DISK>", "WAN>", "CLIENTS>")
    rows = [
        [row.what, *map(_times, (row.cores, row.memory, row.disk, row.wan, row.clients))]
        for row in rows_of
    ]
    return Section(title, columns, rows, [])


def _times(value: float) -> str:
    return f"{value:.2f}"


def _percent(share: float) -> str:
    return f"{share * 100:.{0 if share >= 0.0995 or not share else 1}f} %"
