"""What of a drill file cannot be done to the pods of a cluster, and what the operator does not run.
Nothing is skipped: a drill is run whole, or refused before it begins. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from imctl.drill.model import (
    ACTIONS,
    CONTROL,
    EXTENSION,
    FIGURES,
    PROBES,
    WITHOUT_FAULTS,
    Drill,
    check_text,
)
from imctl.drill.simulable import ACTIVITY, FIELDS

# A pod is killed and kept down, and its volume emptied; an IDC's process cuts its own links and
# makes them slow, and breaks the clock and the disk that it sees.
POSSIBLE = WITHOUT_FAULTS | {
    "kill_idc", "wipe_idc", "start_idc", "crash", "partition", "isolate", "split", "slow", "heal",
    "skew_clock", "fill_disk",
}  # fmt: skip
# A drill holds up all others meanwhile, and its load is made in the operator's own pod.
FAULT_MAX_S, USERS_MAX = 3600, 500
_BESIDE = "drills break the pods of IDCs only"
_STILL = "its liveness probe would have a pod that stands still started again"
WHY_NOT = {
    "pause_idc": _STILL, "resume_idc": _STILL, "kill_unit": _BESIDE, "start_unit": _BESIDE,
    "pause_unit": _BESIDE, "resume_unit": _BESIDE,
}  # fmt: skip
LOOKS = frozenset({*FIGURES, "idcs_active", "alarms"})


def impossible(drill: Drill) -> Iterator[str]:
    """A line for each action of ours that pods do not take: its place, and why."""
    for place, row in drill.activities():
        provider = row.get("provider") or {}
        if provider.get("module") == ACTIONS and provider.get("func") not in POSSIBLE:
            func = str(provider.get("func"))
            why = f"{WHY_NOT[func]}; " if func in WHY_NOT else ""
            yield (
                f"{place}.provider.func: {func}: {why}expected one of "
                f"{', '.join(sorted(POSSIBLE))}, which is what can be done to pods"
            )
        elif (provider.get("arguments") or {}).get("mode", "drop") != "drop":
            yield (
                f"{place}.provider.arguments.mode: expected drop: a link of pods is cut in "
                "silence, which is what can be done to pods"
            )


def judged(text: str, name: str) -> tuple[Drill | None, list[str]]:
    """The drill of a file that anybody may have written; and what stands against the operator's
    running it, in the words of `imctl drill validate`."""
    try:
        # An alias of an alias of ... is small here and immense when it is read.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            return None, [f"{name}: expected no aliases of YAML (*)"]
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        return None, [f"{name}: expected YAML, got {str(error).splitlines()[0]}"]
    path = Path(name)
    # Before it is judged as a whole: for that the modules that it names are loaded.
    own = strange(Drill(name, path, document)) if isinstance(document, dict) else ()
    if problems := [f"{name}: {problem}" for problem in own]:
        return None, problems
    drill, problems = check_text(text, path)
    if drill is not None and not problems:
        found = (*impossible(drill), *too_much(drill))
        problems = [f"{name}: {problem}" for problem in found]
    return drill, problems


def too_much(drill: Drill) -> Iterator[str]:
    """A line for each setting that anybody may have written and the operator does not bear."""
    bounds = {
        "fault_max_s": (drill.settings.fault_max_s, FAULT_MAX_S),
        "load.users": (drill.settings.load.users, USERS_MAX),
    }
    names = [row.get("name") for row in drill.experiment.get("extensions") or []]
    for field, (value, most) in bounds.items():
        if value > most:
            place = f"extensions[{names.index(EXTENSION)}].{field}"
            yield f"{place}: expected at most {most}, got {value:g}"


def strange(drill: Drill) -> Iterator[str]:
    """A line for each thing that would run other code than ours, or read what is not in the file:
    whoever may make an object is not let into the operator's process by it."""
    document = drill.experiment
    for name, value in document.items():
        if name not in FIELDS and value:
            yield f"{name}: the operator does not take this field"
    variables = document.get("configuration") or {}
    for name, value in variables.items() if isinstance(variables, dict) else ():
        if isinstance(value, dict | list):
            yield f"configuration.{name}: expected a plain value"
    controls = document.get("controls") or []
    for number, row in enumerate(controls if isinstance(controls, list) else [controls]):
        own = frozenset({"name", "provider"})
        yield from _only(f"controls[{number}]", row, (CONTROL,), own)
    try:
        rows = list(drill.activities())
    except (AttributeError, TypeError) as error:
        yield f"expected an experiment, got another document ({error})"
        return
    for place, row in rows:
        yield from _only(place, row, (ACTIONS, PROBES), ACTIVITY)
        tolerance = row.get("tolerance")
        if isinstance(tolerance, dict) and tolerance.get("type") == "probe":
            yield f"{place}.tolerance: expected a value or a range, got a probe"


def _only(place: str, row: Any, modules: tuple[str, ...], fields: frozenset[str]) -> Iterator[str]:
    provider: Any = row.get("provider") if isinstance(row, Mapping) else None
    if not isinstance(row, Mapping) or not isinstance(provider, Mapping):
        yield f"{place}: expected a mapping with a `provider`"
        return
    for name in row:
        if name not in fields and row[name]:
            yield f"{place}.{name}: the operator does not take this field"
    kind, module = provider.get("type"), provider.get("module")
    if kind != "python" or module not in modules:
        yield f"{place}.provider: expected python of {' or '.join(modules)}, got {kind} of {module}"
    elif module == PROBES and provider.get("func") not in LOOKS:
        yield f"{place}.provider.func: expected one of {', '.join(sorted(LOOKS))}"
    elif more := set(provider) - {"type", "module", "func", "arguments"}:
        yield f"{place}.provider: the operator does not take {', '.join(sorted(map(str, more)))}"
