"""How long a start waits for MirrorMakers. What units and IDCs say is made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imcore.errors import ImError, Unavailable
from imctl import admin, startup
from imctl.errors import Failed
from imctl.target.local import Local

IDCS = ("fra", "iad", "sin")
AGE_S = 30.0  # of every MirrorMaker


class Beside:
    """Three IDCs that copy from each other. ``last_s``: by (target, source), how long ago the
    flow gave a sign of life."""

    def __init__(self) -> None:
        kinds = [(f"{idc}-{kind}", idc, kind) for idc in IDCS for kind in ("kafka", "mm2")]
        self.found = {n: SimpleNamespace(name=n, idc=idc, kind=kind) for n, idc, kind in kinds}
        self.gone: set[str] = set()
        self.last_s: dict[tuple[str, str], float | None] = {
            (idc, other): 1.0 for idc in IDCS for other in IDCS if other != idc
        }
        self.looked: list[set[str]] = []
        self.look: Callable[[], None] = lambda: None

    def engine_names(self) -> list[str]:
        return list(self.found)

    def engine(self, name: str) -> SimpleNamespace:
        return self.found[name]

    def units(self) -> list[SimpleNamespace]:
        names = [*IDCS, *self.found]
        return [
            SimpleNamespace(name=n, state="gone" if n in self.gone else "running") for n in names
        ]

    def check_alive(self, names: Sequence[str]) -> None:
        for name in names:
            if name in self.gone:
                raise Failed(f"{name} ended while starting")

    def age_s(self, name: str) -> float:
        return AGE_S

    def log_file(self, name: str) -> Path:
        return Path("/deployment") / f"{name}.log"

    async def statuses(
        self, target: Any, names: Sequence[str], timeout_s: float
    ) -> dict[str, dict[str, Any] | ImError]:
        self.looked.append(set(names))
        self.look()
        return {name: self.status(name) for name in names}

    def status(self, name: str) -> dict[str, Any] | ImError:
        if name in self.gone:
            return Unavailable("it does not answer")
        flows = {source: age for (target, source), age in self.last_s.items() if target == name}
        return {"mirror": {source: {"worker_age_s": age} for source, age in flows.items()}}


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Beside:
    beside = Beside()
    monkeypatch.setattr(admin, "statuses", beside.statuses)
    monkeypatch.setattr(startup, "MIRRORS_S", 0.3)
    monkeypatch.setattr(startup, "POLL_S", 0.01)
    return beside


async def wait(beside: Beside, *names: str) -> list[str]:
    """Those of which it was said that they serve."""
    served: list[str] = []
    target = cast(Local, beside)
    await startup.wait_for_mirrors(target, names, lambda name, serving: served.append(name))
    return sorted(served)


async def test_a_start_waits_for_the_first_sign_of_life_of_each_flow(beside: Beside) -> None:
    beside.last_s["iad", "sin"] = None

    def look() -> None:
        if len(beside.looked) == 3:
            beside.last_s["iad", "sin"] = 0.0

    beside.look = look
    assert await wait(beside, *IDCS) == ["fra-mm2", "iad-mm2", "sin-mm2"]
    assert beside.looked == [set(IDCS), {"iad"}, {"iad"}]


async def test_what_an_earlier_mirrormaker_left_is_no_sign_of_life(beside: Beside) -> None:
    beside.last_s["fra", "iad"] = AGE_S + 3_600
    with pytest.raises(Failed) as failed:
        await wait(beside, *IDCS)
    assert str(failed.value) == (
        "fra-mm2 did not serve within 0.3 s; fra has seen no sign of life of its flow from iad; "
        "see /deployment/fra-mm2.log"
    )


async def test_a_start_of_one_idc_waits_for_nothing_that_needs_an_idc_that_is_down(
    beside: Beside,
) -> None:
    beside.gone = {"iad", "iad-kafka", "iad-mm2"}
    beside.last_s["fra", "iad"] = None
    assert await wait(beside, "fra") == ["fra-mm2"]
    assert await wait(beside, "iad-mm2") == []  # nobody is there who would see it
    assert await wait(beside, "fra.gateway-1", "fra-kafka") == []


async def test_a_mirrormaker_that_ends_is_said_at_once(beside: Beside) -> None:
    beside.last_s["sin", "fra"] = None
    beside.gone = {"sin-mm2"}
    with pytest.raises(Failed, match="sin-mm2 ended while starting"):
        await wait(beside, *IDCS)
