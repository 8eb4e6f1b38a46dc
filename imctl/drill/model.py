"""A drill file: an experiment in the Chaos Toolkit's format, and what our extension of it says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from imcore.errors import BadInput
from imcore.region.model import Model
from imcore.roles import Role

EXTENSION = "imctl"
FOLDER = Path("regions/drills")  # of the folder that one is in; else that which lies beside imctl
CONTROL = "imctl.drill.control"
# Arguments of our actions that name an IDC: a preflight compares them with the region.
IDC_ARGUMENTS = ("idc", "a", "b", "source", "target", "lost", "idcs")
FIGURES = (
    "longest_wait_s", "canary_delay_s", "failed_sends", "load_percent", "ipconf_behind_s",
    "mirror_behind_s", "idcs_silent", "epochs_disputed",
)  # fmt: skip
PROBES, ACTIONS = "imctl.drill.probes", "imctl.drill.actions"
# Actions that move traffic or wait. ``undo_faults`` does nothing where there was none.
WITHOUT_FAULTS = frozenset(
    {
        "hold", "switchover", "failback", "undo_faults", "wait_state", "wait_moved",
        "wait_answered", "wait_connected", "wait_canaries", "look_at_survivors", "wait_steady",
        "expect_stale",
    }
)  # fmt: skip


class LoadSettings(Model):
    """Who talks, and how much. Canaries: one conversation for each pair of IDCs (and one inside
    each), both ends of which speak this often."""

    users: int = Field(default=24, ge=2)
    rate: float = Field(default=20.0, gt=0, description="messages a second, canaries apart")
    group_rate: float = Field(default=2.0, ge=0, description="of these, to groups")
    canary_every_s: float = Field(default=0.5, gt=0)


class Enough(Model):
    """With less than this nothing is shown: inconclusive."""

    acked: int = Field(default=300, ge=1, description="messages acked, all told")
    canaries: int = Field(default=20, ge=1, description="acked from each IDC to each IDC")


class Promised(Model):
    """Limits; what has none is measured and not judged. Seconds."""

    rto_s: float | None = Field(default=None, gt=0)
    gap_s: float | None = Field(default=None, gt=0, description="of a planned move")
    moved_s: float | None = Field(default=None, gt=0, description="until the last has moved")
    failed_sends: int | None = Field(default=None, ge=0)


class Settings(Model):
    load: LoadSettings = LoadSettings()
    enough: Enough = Enough()
    promised: Promised = Promised()
    abort_above: dict[str, float] = Field(default_factory=dict, description="figure: its limit")
    probe_every_s: float = Field(default=1.0, gt=0, description="the hypothesis, during")
    fault_max_s: float = Field(default=300.0, gt=0, description="then the janitor undoes a fault")


@dataclass(frozen=True, slots=True)
class Drill:
    """``experiment``: the file as it stands; ``settings``: our extension's part of it."""

    name: str
    path: Path
    experiment: dict[str, Any]
    settings: Settings = field(default_factory=Settings)

    @property
    def title(self) -> str:
        return str(self.experiment.get("title", self.name))

    @property
    def variables(self) -> dict[str, Any]:
        return dict(self.experiment.get("configuration") or {})

    def activities(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each with its place in the file."""
        hypothesis = self.experiment.get("steady-state-hypothesis") or {}
        parts = {
            "steady-state-hypothesis.probes": hypothesis.get("probes"),
            "method": self.experiment.get("method"),
            "rollbacks": self.experiment.get("rollbacks"),
        }
        for part, rows in parts.items():
            for number, row in enumerate(rows or []):
                if isinstance(row, dict):
                    yield f"{part}[{number}]", row

    def role_needed(self) -> Role:
        """Of who runs it: an activity that is not known to be harmless is a fault."""
        providers = [row.get("provider") or {} for _, row in self.activities()]
        breaks = any(
            one.get("module") != PROBES
            and (one.get("module") != ACTIONS or one.get("func") not in WITHOUT_FAULTS)
            for one in providers
        )
        return Role.ADMIN if breaks else Role.OPERATOR

    def idcs_named(self, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(place, IDC) of every argument that names one; ``values``: of the variables."""
        for place, row in self.activities():
            arguments = (row.get("provider") or {}).get("arguments") or {}
            for name in IDC_ARGUMENTS:
                given = arguments.get(name)
                for value in given if isinstance(given, list) else [given]:
                    if isinstance(value, str):
                        yield f"{place}.{name}", _filled(value, values)


def _filled(value: str, values: Mapping[str, Any]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), value)


def ready_made() -> Path:
    return FOLDER if FOLDER.is_dir() else Path(__file__).parents[2] / FOLDER


def find(name_or_file: str, folder: Path | None = None) -> Path:
    """The file of a drill by its name, or the file itself. Raises BadInput."""
    folder = folder or ready_made()
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise BadInput(f"there is no drill file {path}")
        return path
    known = {path.stem: path for path in listed(folder)}
    if name_or_file not in known:
        names = ", ".join(known) or "none"
        raise BadInput(f"expected a drill file, or one of {folder} ({names}), got {name_or_file!r}")
    return known[name_or_file]


def listed(folder: Path | None = None) -> list[Path]:
    return sorted((folder or ready_made()).glob("*.yaml"))


def load_drill(path: Path) -> Drill:
    """Raises BadInput with every mistake that is found, a line each."""
    drill, problems = check(path)
    if problems or drill is None:
        raise BadInput("\n".join(problems))
    return drill


def check(path: Path) -> tuple[Drill | None, list[str]]:
    """The drill, when its shape lets it be read, and what is wrong with the file."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        return None, [f"{path}: cannot be read: {error}"]
    return check_text(text, path)


def check_text(text: str, path: Path) -> tuple[Drill | None, list[str]]:
    """The same of a text; ``path``: by which it is called."""
    try:
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return None, [f"{path}:{line}: {error.problem or 'not YAML'}"]
    except yaml.YAMLError as error:  # a character that none may have
        return None, [f"{path}: not YAML: {str(error).splitlines()[0]}"]
    if not isinstance(document, dict):
        return None, [f"{path}: expected an experiment (a mapping with title, method, ...)"]
    settings, problems = _settings(document)
    drill = Drill(path.stem, path, document, settings)
    problems += _toolkit_problems(document)
    problems += _variable_problems(drill)
    if CONTROL not in _control_modules(document):
        problems.append(
            f"controls: expected one with the provider {{type: python, module: {CONTROL}}}, "
            "which runs the load and the ledger"
        )
    return drill, [f"{path}: {problem}" for problem in problems]


def _settings(document: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """Of our extension; what has no extension has the defaults."""
    rows = document.get("extensions") or []
    if not isinstance(rows, list):
        return Settings(), ["extensions: expected a list"]
    ours = [row for row in rows if isinstance(row, dict) and row.get("name") == EXTENSION]
    if not ours:
        return Settings(), []
    number = rows.index(ours[0])
    try:
        found = Settings.model_validate({k: v for k, v in ours[0].items() if k != "name"})
    except ValidationError as error:
        return Settings(), [
            f"extensions[{number}].{'.'.join(map(str, one['loc']))}: {one['msg']}"
            f"{_got(one['input'])}"
            for one in error.errors()
        ]
    unknown = [name for name in found.abort_above if name not in FIGURES]
    return found, [
        f"extensions[{number}].abort_above.{name}: expected one of {', '.join(FIGURES)}"
        for name in unknown
    ]


def _got(value: object) -> str:
    return "" if isinstance(value, dict | list) else f", got {value!r}"


def _toolkit_problems(document: dict[str, Any]) -> list[str]:
    """What chaostoolkit-lib says of it: the first mistake of each activity, and of the rest."""
    from chaoslib.activity import ensure_activity_is_valid
    from chaoslib.exceptions import ChaosException
    from chaoslib.experiment import ensure_experiment_is_valid

    problems = []
    drill = Drill("", Path(), document)
    for place, row in drill.activities():
        try:
            ensure_activity_is_valid(row)
        except (ChaosException, TypeError, AttributeError) as error:
            problems.append(f"{place}: {error}")
    if problems:
        return problems
    try:
        ensure_experiment_is_valid(document)
    except (ChaosException, TypeError, AttributeError) as error:
        return [str(error)]
    return []


def _variable_problems(drill: Drill) -> Iterator[str]:
    known = drill.variables
    for place, row in drill.activities():
        for name in sorted(set(re.findall(r"\$\{(\w+)\}", str(row)))):
            if name not in known:
                yield f"{place}: ${{{name}}} is not in `configuration`"


def _control_modules(document: Mapping[str, Any]) -> list[str]:
    rows = document.get("controls") or []
    return [str((row.get("provider") or {}).get("module")) for row in rows if isinstance(row, dict)]


def with_values(drill: Drill, given: Mapping[str, str]) -> dict[str, Any]:
    """The variables' values for one run, each of the type that the drill gives it. Raises BadInput
    for a name that the drill lacks, and a value of another type."""
    values = drill.variables
    for name, value in given.items():
        if name not in values:
            names = ", ".join(values) or "none"
            raise BadInput(f"--var {name}: the drill {drill.name} has these variables: {names}")
        values[name] = _typed(name, values[name], value)
    return values


def _typed(name: str, standing: object, given: str) -> Any:
    if isinstance(standing, bool):  # of any text but none bool() would make True
        if given not in ("true", "false"):
            raise BadInput(f"--var {name}: expected true or false, got {given!r}")
        return given == "true"
    for kind, expected in ((int, "a whole number"), (float, "a number")):
        if isinstance(standing, kind):
            try:
                return kind(given)
            except ValueError as error:
                raise BadInput(f"--var {name}: expected {expected}, got {given!r}") from error
    return given
