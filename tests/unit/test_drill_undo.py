"""Undoing what a drill has left: what is not whole does not keep clients from their IDCs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from imcore.proto import peer_pb2 as pb
from imcore.runtime import SystemClock
from imctl.drill import breakage as under_test
from imctl.drill.breakage import Breakage
from imctl.drill.faults import Kind
from imctl.drill.means import GatewaysLate
from imctl.errors import Failed
from imctl.moves import Moves
from imctl.traffic import Steering


class Region:
    """Its IDCs, as means, as a control and as moves."""

    refusal = ""

    def __init__(self, *gone: str) -> None:
        self.gone = set(gone)
        self.late: set[str] = set()  # gateways of these are never ready
        self.dead: set[str] = set()  # these never serve
        self.drained: set[str] = set(gone)
        self.touched: dict[str, bool] = {}  # by what was waited for

    def state(self, unit: str) -> str:
        return "gone" if unit in self.gone else "running"

    async def start(self, unit: str) -> None:
        self.gone.discard(unit)

    async def serving(self, units: list[str], touched: bool = True) -> None:
        for unit in units:
            self.touched[unit] = touched
            if unit in self.dead:
                raise Failed(f"{unit} did not serve")
            if unit in self.late:
                raise GatewaysLate(f"not all gateways of {unit} are ready")

    async def link(self, fault: pb.LinkFault) -> None:
        pass

    async def policy(self) -> Any:
        rows = {
            idc: SimpleNamespace(state="drained" if idc in self.drained else "active", ramp=100)
            for idc in ("fra", "dub")
        }
        return SimpleNamespace(idcs=rows)

    async def failback(self, idc: str) -> None:
        self.drained.discard(idc)


@pytest.fixture
def region(monkeypatch: pytest.MonkeyPatch) -> Region:
    monkeypatch.setattr(under_test, "POLL_S", 0.0)
    return Region("fra")


def breakage(region: Region, folder: Path) -> Breakage:
    """With both IDCs in its book as killed, as an operator writes it for another's run."""
    steering, moves = cast(Steering, cast(Any, region)), cast(Moves, cast(Any, region))
    made = Breakage(region, steering, moves, SystemClock(), 60.0, folder)  # type: ignore[arg-type]
    made.book.begin("loss", "u1", ["fra", "dub"])
    for idc in ("fra", "dub"):
        made.note(Kind.KILL, idc, f"{idc} may be down")
    return made


async def test_gateways_that_are_never_ready_are_noted_and_clients_given_back(
    region: Region, tmp_path: Path
) -> None:
    region.late = {"fra", "dub"}
    made = breakage(region, tmp_path)
    assert await made.undo_all() == []
    said = "{0} may be down; that is undone, but not all gateways of {0} are ready."
    assert sorted(made.notes) == [said.format("dub"), said.format("fra")]
    assert not region.drained and made.book.read().run == ""
    assert region.touched == {"fra": True, "dub": False}  # nobody waits long for what it left


async def test_an_idc_that_does_not_serve_stays_in_the_book(region: Region, tmp_path: Path) -> None:
    region.dead = {"fra"}
    made = breakage(region, tmp_path)
    (problem,) = await made.undo_all()
    assert problem == "fra may be down, and it could not be undone: fra did not serve"
    assert [fault.unit for fault in made.book.read().faults] == ["fra"]


async def test_an_action_that_starts_an_idc_fails_without_its_gateways(
    region: Region, tmp_path: Path
) -> None:
    region.late = {"fra", "dub"}
    made = breakage(region, tmp_path)
    for idc in ("fra", "dub"):
        with pytest.raises(GatewaysLate):
            await made.undo_kind(Kind.KILL, idc)
    assert region.touched == {"fra": True, "dub": True}
    assert {fault.unit for fault in made.book.read().faults} == {"fra", "dub"}
