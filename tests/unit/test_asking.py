"""What a traffic command commits, and what it asks before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace as Made

import pytest

from imcore.region.load import load_region
from imctl.commands import asking
from imctl.errors import Guarded
from imctl.options import Format
from imctl.traffic import Judged
from imctl.ways import ByRegistries
from services.control.evaluate import Decision
from services.control.evidence import Evidence
from services.control.rules import Blocker, Change, Kind
from services.policy.document import initial

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
POLICY = initial(REGION, 1)
REFUSED = Decision(None, "votes have not held", (Blocker("hold-time", "1 s", "3 s", "x"),))


class Control:
    """It would be committed by the time that it is asked for."""

    idcs, region = ("fra", "iad", "sin"), REGION

    def __init__(self) -> None:
        self.submitted: list[Change] = []
        self.noted: list[Change] = []

    def permits(self, change: Change) -> bool:
        return True

    async def judge(self, change: Change) -> Judged:
        return Judged(POLICY, Evidence(), REFUSED)

    async def submit(self, change: Change) -> Decision:
        self.submitted.append(change)
        return Decision(POLICY, "fra is failed")

    async def note(self, change: Change, judged: Judged) -> None:
        self.noted.append(change)

    async def policy(self) -> object:
        return POLICY


@pytest.mark.parametrize("yes", [False, True])
def test_nothing_is_committed_that_nobody_has_said_yes_to(
    monkeypatch: pytest.MonkeyPatch, yes: bool
) -> None:
    """The hold time may be over between what is shown and what is asked for."""
    control = Control()

    def with_control(data: Path | None, work: Callable[[Control], Awaitable[object]]) -> object:
        async def run() -> object:
            return await work(control)

        return asyncio.run(run())

    monkeypatch.setattr(asking, "with_control", with_control)
    monkeypatch.setattr("imctl.deployment.find", lambda data: Made(region=REGION))
    monkeypatch.setattr(asking, "choose", lambda *_: ByRegistries())
    how = asking.Asking(False, yes, Format.JSON, None, True, 1.0)
    change = Change(Kind.FAILOVER, "fra", "r", "operator")
    if yes:
        asking.run_change(change, how)
    else:
        with pytest.raises(Guarded):
            asking.run_change(change, how)
    assert (len(control.submitted), len(control.noted)) == ((1, 0) if yes else (0, 1))
