"""What the simulation cannot do is refused up front, with the field that stands against it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from imctl.drill import model
from imctl.drill.actions import WORK
from imctl.drill.simulable import UNITS, refusals

IDCS = ("fra", "iad", "sin")
DRILLS = Path(__file__).parents[2] / "regions" / "drills"


def refused(document: dict[str, Any], **values: Any) -> list[str]:
    drill = model.Drill("d", Path("d.yaml"), document)
    return list(refusals(drill, drill.variables | values, IDCS))


def idc_loss() -> dict[str, Any]:
    return deepcopy(model.load_drill(DRILLS / "idc-loss.yaml").experiment)


def act(func: str, **arguments: Any) -> dict[str, Any]:
    provider = {"type": "python", "module": model.ACTIONS, "func": func, "arguments": arguments}
    return {"name": func, "type": "action", "provider": provider}


def test_every_ready_made_drill_but_the_one_that_needs_a_rate_can_be_simulated() -> None:
    said = {}
    for path in model.listed(DRILLS):
        drill = model.load_drill(path)
        if found := list(refusals(drill, drill.variables, IDCS)):
            said[path.stem] = found
    assert set(said) == {"mirror-stall"}
    (line,) = said["mirror-stall"]
    assert line.startswith("method[1].provider.arguments.rate_kbit: ")


def test_units_beside_the_idcs_are_known_by_name() -> None:
    assert set(WORK) >= UNITS


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (act("kill_unit", unit="witness"), "method[0].provider.func"),
        (act("partition", a="fra", b="iad", mode="reject"), "method[0].provider.arguments.mode"),
        (act("kill_idc", idc="lhr"), "method[0].provider.arguments.idc"),
        (act("crash", idcs=["fra", "lhr"]), "method[0].provider.arguments.idcs"),
        ({**act("heal"), "background": True}, "method[0].background"),
        ({**act("heal"), "controls": [{"name": "c"}]}, "method[0].controls"),
        (
            {"name": "x", "type": "action", "provider": {"type": "process", "path": "ls"}},
            "method[0].provider.type",
        ),
        (
            {"name": "x", "type": "action", "provider": {"type": "python", "module": "os"}},
            "method[0].provider.module",
        ),
    ],
)
def test_an_activity_is_refused_by_its_field(row: dict[str, Any], field: str) -> None:
    (line,) = refused({**idc_loss(), "method": [row]})
    assert line.startswith(f"{field}: ")


def test_other_fields_of_a_file_are_refused_too() -> None:
    document = idc_loss()
    document["controls"].append({"name": "c", "provider": {"type": "python", "module": "other"}})
    document["secrets"] = {"a": {"b": "c"}}
    document["configuration"]["victim"] = {"type": "env", "key": "VICTIM"}
    said = [line.partition(": ")[0] for line in refused(document)]
    assert said[:3] == ["secrets", "configuration.victim", "controls[1]"]


def test_a_variable_is_judged_by_its_value() -> None:
    assert refused(idc_loss(), victim="sin") == []
    (first, *_) = refused(idc_loss(), victim="lhr")
    assert "and no lhr" in first
