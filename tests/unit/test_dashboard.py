"""The live view: what it says has happened, and the curves."""

from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

import pytest
from rich.console import Console

from imctl.dashboard import EVENTS_MAX, Dashboard, bars, changes

AT = datetime(2026, 1, 1, 12, 0, 0)
IDCS = ("fra", "iad", "sin")


def document() -> dict[str, Any]:
    rows = {name: {"state": "active", "ramp": 100} for name in IDCS}
    return {
        "region": "three-idc",
        "policy": {"epoch": 4, "idcs": rows, "operation": "", "operation_state": ""},
        "ages": dict.fromkeys(IDCS, 0.1),
        "capacity": {name: {"sessions": 1_000, "messages_per_s": 500} for name in IDCS},
        "processes": {name: {"state": "running", "pid": 1} for name in IDCS},
        "idcs": {
            name: {"origin": f"{name}.1", "sessions": 100, "rates": {"accepted_per_s": 50.0}}
            for name in IDCS
        },
        "witness": None,
        "witness_name": None,
        "links": [],
    }


def shown(view: Any, width: int) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_nothing_has_happened_while_all_stays_as_it_is() -> None:
    assert changes(document(), document()) == []


def test_states_shares_processes_and_operations_are_events() -> None:
    before, now = document(), document()
    now["policy"] |= {"epoch": 5, "operation": "drain-fra-5", "operation_state": "running"}
    now["policy"]["idcs"]["fra"] = {"state": "draining", "ramp": 100}
    now["policy"]["idcs"]["iad"] = {"state": "active", "ramp": 50}
    now["idcs"]["sin"] = {"error": "sin does not answer"}
    assert changes(before, now) == [
        "fra: active -> draining (epoch 5)",
        "iad: 100 % -> 50 % of its clients",
        "sin: running -> unreachable",
        "drain-fra-5 started",
    ]
    paused = copy.deepcopy(now)
    paused["policy"]["operation_state"] = "paused by operator"
    assert changes(now, paused) == ["drain-fra-5 -> drain-fra-5 paused by operator"]
    assert changes(now, before)[-1] == "drain-fra-5 -> ended"


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal_and_shows_the_newest_event_first(width: int) -> None:
    dashboard, state = Dashboard(), document()
    for look in range(60):
        state = copy.deepcopy(state)
        state["policy"]["epoch"] += 1
        state["policy"]["idcs"]["fra"]["state"] = "draining" if look % 2 else "active"
        state["idcs"]["fra"]["sessions"] = 100 - look
        text = shown(dashboard.see(state, AT), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    events = [line for line in lines if line.startswith("12:00:00 fra:")]
    assert len(events) == EVENTS_MAX
    assert events[0] == "12:00:00 fra: active -> draining (epoch 64)"
    (curve,) = [line for line in lines if line.startswith("fra ") and "▄" in line]
    assert curve.split()[1].startswith("▆") and curve.split()[1].endswith("▄")


def test_bars_share_one_scale_and_nothing_at_all_is_flat() -> None:
    assert bars([0, 50, 100], 100) == "▁▅█"
    assert bars([0, 50, 100], 1_000) == "▁▁▂"
    assert bars([0, 0], 0) == "▁▁"
