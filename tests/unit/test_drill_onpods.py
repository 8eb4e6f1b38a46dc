"""What the operator runs of a drill that anybody may have written, and what pods take of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.drill import model, onpods

FOLDER = Path(__file__).parents[2] / "regions" / "drills"
ON_PODS = {
    "idc-loss", "planned-switchover", "gateway-crash", "reconnect-storm", "rolling-evacuation",
    "wan-partition", "asymmetric-partition", "registry-minority", "slow-wan", "mirror-stall",
    "full-region-gameday", "idc-loss-for-good",
}  # fmt: skip
Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("path", model.listed(FOLDER), ids=lambda path: path.stem)
def test_the_ready_made_ones_that_pods_take(path: Path) -> None:
    drill, problems = onpods.judged(path.read_text(), path.stem)
    assert drill is not None
    assert (problems == []) == (path.stem in ON_PODS), problems
    assert all("which is what can be done to pods" in each for each in problems)


def activity(**provider: Any) -> Edit:
    return lambda document: document["method"].append(
        {"name": "x", "type": "action", "provider": provider}
    )


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (activity(type="process", path="rm"), "method[9].provider: expected python of"),
        (activity(type="http", url="http://x"), "method[9].provider: expected python of"),
        (activity(type="python", module="os", func="system"), "got python of os"),
        (
            activity(type="python", module="imctl.drill.probes", func="asyncio"),
            "method[9].provider.func: expected one of",
        ),
        (
            activity(type="python", module="imctl.drill.actions", func="stage"),
            "method[9]: ",
        ),
        (
            activity(type="python", module="imctl.drill.actions", func="hold", secrets=["x"]),
            "does not take secrets",
        ),
        (
            lambda d: d["controls"].append(
                {"name": "c", "provider": {"type": "python", "module": "antigravity"}}
            ),
            "controls[1].provider: expected python of imctl.drill.control, got python of",
        ),
        (lambda d: d.update(secrets={"a": {"type": "env"}}), "secrets: the operator does not"),
        (lambda d: d.update(runtime={"rollbacks": {}}), "runtime: the operator does not"),
        (
            lambda d: d["configuration"].update(victim={"type": "env", "key": "HOME"}),
            "configuration.victim: expected a plain value",
        ),
        (lambda d: d.update(controls={"x": 1}), "controls[0]: expected a mapping"),
        (lambda d: d["method"][0].update(background=True), "method[0].background: the operator"),
        (lambda d: d.update({"steady-state-hypothesis": [1]}), "expected an experiment"),
    ],
)
def test_nothing_but_our_own_code_is_run(edit: Edit, why: str) -> None:
    document = yaml.safe_load((FOLDER / "idc-loss.yaml").read_text())
    edit(document)
    _, problems = onpods.judged(yaml.safe_dump(document), "mine")
    assert any(why in each and each.startswith("mine: ") for each in problems), problems


@pytest.mark.parametrize(
    ("func", "why"),
    [
        ("pause_idc", "its liveness probe would have a pod that stands still started again"),
        ("kill_unit", "drills break the pods of IDCs only"),
    ],
)
def test_what_pods_do_not_take_is_refused_with_its_reason(func: str, why: str) -> None:
    document = yaml.safe_load((FOLDER / "idc-loss.yaml").read_text())
    arguments = {"unit": "witness"} if func == "kill_unit" else {"idc": "fra"}
    provider = {"type": "python", "module": model.ACTIONS, "func": func, "arguments": arguments}
    document["method"].append({"name": "x", "type": "action", "provider": provider})
    _, problems = onpods.judged(yaml.safe_dump(document), "mine")
    assert [f"provider.func: {func}: {why}; expected one of" in each for each in problems] == [True]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"fault_max_s": 3600, "load": {"users": 500}}, []),
        ({"fault_max_s": 3601}, ["fault_max_s: expected at most 3600, got 3601"]),
        ({"fault_max_s": float("inf")}, ["fault_max_s: expected at most 3600, got inf"]),
        ({"load": {"users": 501}}, ["load.users: expected at most 500, got 501"]),
    ],
)
def test_what_the_operator_does_not_bear(settings: dict[str, Any], why: list[str]) -> None:
    document = yaml.safe_load((FOLDER / "idc-loss.yaml").read_text())
    (own,) = document["extensions"]
    own |= settings
    drill, problems = onpods.judged(yaml.safe_dump(document), "mine")
    assert problems == [f"mine: extensions[0].{each}" for each in why]
    assert drill is not None, "what is under way already is undone by what its file says"


def test_a_link_of_pods_is_cut_in_silence_only() -> None:
    text = (FOLDER / "wan-partition.yaml").read_text()
    document = yaml.safe_load(text)
    document["method"][1]["provider"]["arguments"]["mode"] = "reject"
    _, problems = onpods.judged(yaml.safe_dump(document), "mine")
    assert problems == [
        "mine: method[1].provider.arguments.mode: expected drop: a link of pods is cut in silence, "
        "which is what can be done to pods"
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &a [x]\nb: [*a, *a]\n", "no aliases"),
        ("a: [", "expected YAML"),
        ("a: \x00", "expected YAML"),
        ("[" * 5000, "expected YAML"),
        ("- 1", "expected an experiment"),
        ("title: x", "description"),
    ],
)
def test_what_is_no_drill(text: str, why: str) -> None:
    _, problems = onpods.judged(text, "mine")
    assert problems and why in problems[0], problems
