"""Drill files: those of the project are whole, and a mistake is named with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore.errors import BadInput
from imctl.drill import model

FOLDER = Path(__file__).parents[2] / "regions" / "drills"
READY_MADE = {
    "idc-loss", "idc-loss-for-good", "wan-partition", "asymmetric-partition", "slow-wan",
    "gateway-crash", "reconnect-storm", "mirror-stall", "registry-minority", "planned-switchover",
    "rolling-evacuation", "full-region-gameday",
}  # fmt: skip


def test_every_promised_drill_is_there() -> None:
    assert {path.stem for path in model.listed(FOLDER)} == READY_MADE


@pytest.mark.parametrize("path", model.listed(FOLDER), ids=lambda path: path.stem)
def test_ready_made_drills_are_whole(path: Path) -> None:
    drill, problems = model.check(path)
    assert problems == [] and drill is not None
    assert [row["provider"]["func"] for row in drill.experiment["rollbacks"]] == ["undo_faults"]
    named = {idc for _, idc in drill.idcs_named(drill.variables)}
    assert named and named <= {"fra", "iad", "sin"}
    text = path.read_text()
    for name in drill.variables:
        assert f"${{{name}}}" in text, f"{name} is not used"
    probed = {
        row["provider"]["func"]
        for place, row in drill.activities()
        if place.startswith("steady-state")
    }
    assert probed >= {"epochs_disputed", "longest_wait_s", "canary_delay_s", "ipconf_behind_s"}


Edit = Callable[[dict[str, Any]], None]


def broken(tmp_path: Path, edit: Edit) -> list[str]:
    document = yaml.safe_load((FOLDER / "idc-loss.yaml").read_text())
    edit(document)
    path = tmp_path / "d.yaml"
    path.write_text(yaml.safe_dump(document))
    _, problems = model.check(path)
    return [problem.removeprefix(f"{path}: ") for problem in problems]


def no_function(document: dict[str, Any]) -> None:
    document["method"][1]["provider"]["func"] = "explode"


def no_argument(document: dict[str, Any]) -> None:
    del document["method"][1]["provider"]["arguments"]


def bad_load(document: dict[str, Any]) -> None:
    document["extensions"][0]["load"] = {"users": 1, "speed": 3}


def unknown_figure(document: dict[str, Any]) -> None:
    document["extensions"][0]["abort_above"] = {"fear": 3}


def no_variable(document: dict[str, Any]) -> None:
    document["configuration"] = {}


def no_control(document: dict[str, Any]) -> None:
    del document["controls"]


def no_title(document: dict[str, Any]) -> None:
    del document["title"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (no_function, "method[1]: "),
        (no_function, "'explode'"),
        (no_argument, "'idc' is missing"),
        (bad_load, "extensions[0].load.users: Input should be greater than or equal to 2, got 1"),
        (bad_load, "extensions[0].load.speed: Extra inputs are not permitted, got 3"),
        (unknown_figure, "extensions[0].abort_above.fear: expected one of longest_wait_s"),
        (no_variable, "method[1]: ${victim} is not in `configuration`"),
        (no_control, "controls: expected one with the provider"),
        (no_title, "experiment requires a title"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, edit: Edit, said: str) -> None:
    assert said in "\n".join(broken(tmp_path, edit))


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "d.yaml:1: "), ("- a", "expected an experiment"), ("", "expected")]
)
def test_a_file_that_is_no_experiment(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(text)
    drill, problems = model.check(path)
    assert drill is None and len(problems) == 1 and said in problems[0]


def test_drills_are_found_by_name_or_as_a_file(tmp_path: Path) -> None:
    assert model.find("idc-loss", FOLDER) == FOLDER / "idc-loss.yaml"
    assert model.find(str(FOLDER / "idc-loss.yaml"), tmp_path) == FOLDER / "idc-loss.yaml"
    with pytest.raises(BadInput, match="wan-partition"):
        model.find("idc-lost", FOLDER)
    with pytest.raises(BadInput, match="no drill file"):
        model.find(str(tmp_path / "x.yaml"))


def test_variables_are_set_by_name() -> None:
    drill = model.load_drill(FOLDER / "idc-loss.yaml")
    values = model.with_values(drill, {"victim": "sin"})
    assert "sin" in dict(drill.idcs_named(values)).values()
    with pytest.raises(BadInput, match="has these variables: victim"):
        model.with_values(drill, {"vctim": "sin"})


TYPED = {"wiped": True, "times": 3, "share": 0.5, "victim": "fra"}


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("wiped", "false", False), ("wiped", "true", True), ("times", "4", 4),
        ("share", "1", 1.0), ("victim", "true", "true"),
    ],
)  # fmt: skip
def test_a_variable_keeps_its_type(name: str, given: str, value: object) -> None:
    drill = model.Drill("x", Path("x.yaml"), {"configuration": dict(TYPED)})
    found = model.with_values(drill, {name: given})[name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("wiped", "no", "true or false"), ("wiped", "", "true or false"),
        ("wiped", "False", "true or false"), ("times", "1.5", "a whole number"),
        ("share", "half", "a number"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(name: str, given: str, expected: str) -> None:
    drill = model.Drill("x", Path("x.yaml"), {"configuration": dict(TYPED)})
    with pytest.raises(BadInput) as raised:
        model.with_values(drill, {name: given})
    assert str(raised.value) == f"--var {name}: expected {expected}, got {given!r}"
