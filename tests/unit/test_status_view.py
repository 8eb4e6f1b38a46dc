"""The status view, from documents of the form that docs of the Admin service promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from imcore.errors import Unavailable
from imcore.region.load import load_region
from imctl.statusview import document_of, process_of, render, state_of
from imctl.target.base import Unit

REGION = load_region(Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml")


def answer(idc: str, epoch: int, states: dict[str, str]) -> dict[str, Any]:
    others = [name for name in ("fra", "iad", "sin") if name != idc]
    return {
        "idc": idc,
        "origin": f"{idc}.1",
        "serving": True,
        "policy": {
            "epoch": epoch,
            "stale": False,
            "idcs": {name: {"state": state, "ramp": 1.0} for name, state in states.items()},
        },
        "gateways": [{"gateway": f"{idc}-gw-1", "connections": 100, "port": 17110}],
        "rates": {"accepted_per_s": 123.4, "pushed_per_s": 234.5},
        "lag": {f"{name}.1": {"records": 3, "ms": 47.2} for name in others},
        "clock": {"offset_ms": -2, "skewed": False},
        "alarms": [],
        "registries": {"fra": "ok", "iad": "ok", "sin": "ok"},
    }


ACTIVE = {"fra": "active", "iad": "active", "sin": "active"}


def build(**found: Any) -> dict[str, Any]:
    units = [Unit(name, "running", 100 + n) for n, name in enumerate(("fra", "iad", "sin"))]
    return document_of(REGION, units, found, {"links": []})


def shown(document: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(render(document))
    return capture.get()


def test_three_healthy_idcs_fit_eighty_columns() -> None:
    document = build(**{name: answer(name, 4, ACTIVE) for name in ACTIVE})
    text = shown(document)
    assert max(map(len, text.splitlines())) <= 80
    assert "three-idc  policy epoch 4" in text
    row = next(line for line in text.splitlines() if line.startswith("iad "))
    assert row.split() == [
        "iad", "Ashburn", "iad.1", "active", "running", "100", "123", "234", "-2", "ms",
    ]  # fmt: skip
    lag = next(line for line in text.splitlines() if line.startswith("sin.1"))
    assert lag.split() == ["sin.1", "47;", "3", "47;", "3", "·"]
    assert "!" not in text
    json.dumps(document)


def test_an_idc_that_does_not_answer_is_shown_as_such_and_the_newest_policy_counts() -> None:
    failed = {**ACTIVE, "fra": "failed"}
    document = build(
        fra=Unavailable("fra does not answer"),
        iad=answer("iad", 5, failed),
        sin=answer("sin", 4, ACTIVE),
    )
    assert state_of(document, "fra") == "failed"
    assert process_of(document, "fra") == "unreachable"
    assert document["policy"]["epoch"] == 5
    assert "! fra: fra does not answer" in shown(document)
    json.dumps(document)


def test_a_process_that_is_gone_or_paused_is_shown_as_such_and_still_fits() -> None:
    found = {name: answer(name, 4, {**ACTIVE, "fra": "recovering"}) for name in ACTIVE}
    units = [Unit("fra", "gone", 1), Unit("iad", "paused", 2), Unit("sin", "running", 3)]
    silent: dict[str, Any] = {"fra": Unavailable("x"), "iad": Unavailable("y"), "sin": found["sin"]}
    document = document_of(REGION, units, silent, None)
    lines = shown(document).splitlines()
    assert next(line for line in lines if line.startswith("fra ")).split()[:5] == [
        "fra", "Frankfurt", "-", "recovering", "gone",
    ]  # fmt: skip
    assert " paused " in next(line for line in lines if line.startswith("iad "))
    assert not any("…" in line for line in lines)


def test_alarms_stale_policies_and_lost_registries_are_shown() -> None:
    iad = answer("iad", 4, ACTIVE)
    iad["policy"]["stale"] = True
    iad["alarms"] = ["the clock is 600000 ms ahead"]
    iad["registries"]["sin"] = "unreachable"
    text = shown(build(fra=iad | {"idc": "fra"}, iad=iad, sin=iad))
    assert "STALE" in text
    assert "! iad: the clock is 600000 ms ahead" in text
    assert "! iad: cannot reach the registry of sin" in text


def test_only_links_under_a_fault_are_listed() -> None:
    link = {
        "from": "fra", "to": "iad", "mode": "drop", "delay_ms": 45.0, "jitter_ms": 3.0,
        "loss": 0.0, "rate_kbit": 1e6, "as_configured": True, "connections": 2,
    }  # fmt: skip
    healthy = link | {"from": "iad", "to": "fra", "mode": "pass"}
    document = build(**{name: answer(name, 4, ACTIVE) for name in ACTIVE})
    assert "links under a fault" not in shown(document | {"links": [healthy]})
    text = shown(document | {"links": [link, healthy]})
    assert "links under a fault" in text
    assert "fra   iad  drop" in text


def test_nothing_answers_at_all() -> None:
    document = build(**{name: Unavailable("gone") for name in ACTIVE})
    text = shown(document)
    assert "policy epoch unknown" in text
    assert text.count("unreachable") == 3


def test_engines_are_shown_where_there_are_some() -> None:
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    for row in found.values():
        row["log"], row["kv"] = {"durability": "fsync"}, {"engine": "embedded", "move": None}
    assert "MIRRORMAKER" not in shown(build(**found))
    well = {"behind": 3, "worker_age_s": 0.8, "problem": ""}
    away = {"behind": None, "worker_age_s": None, "problem": "sin's Kafka does not answer"}
    found["fra"]["mirror"] = {"iad": well, "sin": away}
    found["fra"]["log"] = {"durability": "flush"}
    move = {"phase": "catch up", "batches": 900, "played": 700}
    found["iad"]["kv"] = {"engine": "embedded", "move": move}
    found["sin"]["kv"] = {"engine": "tikv", "move": None}
    for width in (80, 120):
        text = shown(build(**found), width)
        assert max(map(len, text.splitlines())) <= width
        words = " ".join(text.split())
        assert "iad 3, 1 s; sin ?, no sign" in words
        assert "embedded (catch up, 200 left)" in words
    assert "sin fsync tikv -" in words
    assert "fra flush embedded" in words
