"""What of a drill file the simulation cannot do. Nothing is skipped: a drill is simulated whole, or
refused before it begins, with the field that stands against it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from imctl.drill.model import ACTIONS, CONTROL, PROBES, Drill

# What docs/drills.md says of an experiment, and what says nothing of how it is played.
FIELDS = frozenset(
    {
        "version", "title", "description", "tags", "contributions", "configuration", "extensions",
        "controls", "steady-state-hypothesis", "method", "rollbacks",
    }
)  # fmt: skip
ACTIVITY = frozenset({"name", "type", "tolerance", "provider", "pauses"})
UNITS = frozenset({"kill_unit", "pause_unit", "start_unit", "resume_unit"})


def refusals(drill: Drill, values: Mapping[str, Any], idcs: Collection[str]) -> Iterator[str]:
    """A line each: the field, and why. ``values``: of the variables; ``idcs``: of the simulation's
    region."""
    for name, value in drill.experiment.items():
        if name not in FIELDS and value:
            yield f"{name}: the simulation does not know this field"
    for name, value in values.items():
        if isinstance(value, dict | list):
            yield f"configuration.{name}: expected a plain value; give one by --var"
    for number, row in enumerate(drill.experiment.get("controls") or []):
        module = (row.get("provider") or {}).get("module")
        if module != CONTROL:
            yield f"controls[{number}]: the simulation has no other control than {CONTROL}"
    for place, row in drill.activities():
        yield from _of_activity(place, row)
    for place, idc in drill.idcs_named(values):
        if idc not in idcs:
            where = place.replace("].", "].provider.arguments.")
            yield f"{where}: the simulated region has the IDCs {', '.join(idcs)}, and no {idc}"


def _of_activity(place: str, row: Mapping[str, Any]) -> Iterator[str]:
    for name in row:
        if name not in ACTIVITY and row[name]:
            yield f"{place}.{name}: the simulation does not know this field"
    provider = row.get("provider") or {}
    at = f"{place}.provider"
    if provider.get("type") != "python":
        yield f"{at}.type: the simulation runs no {provider.get('type')}, only our python modules"
        return
    if provider.get("module") not in (ACTIONS, PROBES):
        yield f"{at}.module: the simulation has {ACTIONS} and {PROBES} only"
        return
    if provider.get("secrets"):
        yield f"{at}.secrets: the simulation has none"
    tolerance = row.get("tolerance")
    if isinstance(tolerance, dict) and tolerance.get("type") == "probe":
        yield f"{place}.tolerance: the simulation judges values, and calls no probe for that"
    arguments = provider.get("arguments") or {}
    function = provider.get("func")
    if function in UNITS:
        yield (
            f"{at}.func: {function}: the simulation has neither a witness nor engines beside the "
            "IDCs"
        )
    if function == "partition" and arguments.get("mode", "drop") != "drop":
        yield f"{at}.arguments.mode: a simulated link is cut in silence (drop), it rejects nothing"
    if function == "slow" and arguments.get("rate_kbit"):
        yield (
            f"{at}.arguments.rate_kbit: a simulated link holds nothing for longer than 3 s, so a "
            "rate below the load would not be felt as on a real one"
        )
