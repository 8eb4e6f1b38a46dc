"""Actions as the Chaos Toolkit calls them: by name, from a thread that blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest
from chaoslib.activity import ensure_activity_is_valid
from chaoslib.provider.python import run_python_activity

from imctl.drill import actions, model
from imctl.drill.session import Session
from imctl.drill.stage import NoSession, stage


class Means:
    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    async def kill(self, unit: str) -> None:
        self.done.append(("kill", unit))

    async def clock(self, idc: str, offset_ms: int) -> None:
        self.done.append(("clock", idc, offset_ms))


class Playing:
    """As much of a session as these actions look at."""

    def __init__(self) -> None:
        self.breakage = Means()
        self.said: list[str] = []

    def stop_reason(self) -> str:
        return ""

    def lose(self, idc: str) -> list[str]:
        return ["a device", "another"]

    def lost(self, idc: str, affected: list[str]) -> None:
        self.breakage.done.append(("lost", idc, len(affected)))

    def phase(self, name: str, said: str) -> None:
        self.said.append(said)

    def mark(self, idc: str, said: str) -> None:
        self.said.append(said)


@pytest.fixture
def playing() -> Iterator[Playing]:
    session = Playing()
    stage.session = cast(Session, session)
    yield session
    stage.close()


def activity(func: str, **arguments: Any) -> dict[str, Any]:
    provider = {"type": "python", "module": model.ACTIONS, "func": func, "arguments": arguments}
    row = {"name": func, "type": "action", "provider": provider}
    ensure_activity_is_valid(row)
    return row


def test_the_toolkit_calls_them_by_name(playing: Playing) -> None:
    said = run_python_activity(activity("kill_idc", idc="fra"), {}, {})
    assert said == "fra is killed (2 devices connected)"
    assert playing.breakage.done == [("kill", "fra"), ("lost", "fra", 2)]
    run_python_activity(activity("skew_clock", idc="${other}", offset_ms=20), {"other": "iad"}, {})
    assert playing.breakage.done[-1] == ("clock", "iad", 20)


def test_what_waits_for_the_load_says_that_there_is_none() -> None:
    try:
        assert actions.hold(0) == "0 s of load"
        with pytest.raises(NoSession, match="no load runs"):
            actions.wait_connected()
    finally:
        stage.close()


def test_every_action_that_waits_or_breaks_can_be_had_for_a_loop_of_ones_own() -> None:
    called = {name for name in vars(actions) if name in actions.WORK}
    assert called == set(actions.WORK)
    assert all(asyncio.iscoroutinefunction(work) for work in actions.WORK.values())
    assert called >= model.WITHOUT_FAULTS
