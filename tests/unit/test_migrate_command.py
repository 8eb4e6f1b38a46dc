"""`imctl migrate kv` and the deployment's region file. No process runs, IDCs are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from imcore.proto import peer_pb2 as pb
from imcore.runtime import SystemClock
from imctl import admin
from imctl.commands.migrate import Engine, kv
from imctl.engines import binaries
from imctl.errors import Failed
from imctl.options import Format
from imctl.target.local import Local
from imctl.testing.lab import lab_region

NEW, OTHER = "10.1.0.21:2379", "10.1.0.22:2379"


class Idcs:
    """What each IDC's KV is on, and what becomes of a move."""

    def __init__(self) -> None:
        self.on = dict.fromkeys(("fra", "iad", "sin"), "embedded")
        self.moves: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []

    async def statuses(self, target: Local, names: Sequence[str]) -> dict[str, Any]:
        return {n: {"kv": {"engine": self.on[n], "move": self.moves.get(n)}} for n in names}

    async def move_kv(
        self,
        target: Local,
        name: str,
        request: pb.MoveKvRequest,
        seen: Callable[[pb.MoveKvProgress], None],
    ) -> pb.MoveKvProgress:
        self.asked.append(name)
        self.on[name] = "tikv" if "tikv" in request.engine_json else "embedded"
        return pb.MoveKvProgress(engine=self.on[name], phase="done")


@pytest.fixture
def idcs(monkeypatch: pytest.MonkeyPatch) -> Idcs:
    idcs = Idcs()
    monkeypatch.setattr(admin, "statuses", idcs.statuses)
    monkeypatch.setattr(admin, "move_kv", idcs.move_kv)
    return idcs


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engines are said to be there at once; which ones were waited for."""
    waited: list[str] = []
    monkeypatch.setattr(binaries, "missing", lambda programs: "")
    monkeypatch.setattr(Local, "_spawn", lambda target, name: None)
    monkeypatch.setattr(Local, "_wait_for_engine", lambda target, name: waited.append(name))
    return waited


@pytest.fixture
def target(tmp_path: Path) -> Local:
    return Local.prepare(lab_region(tmp_path), tmp_path / "data", False, SystemClock())


def migrate(target: Local, to: Engine, *names: str, pd: Sequence[str] = ()) -> None:
    kv(
        to=to, idcs=list(names) or None, from_=None, pd=list(pd), cancel=False, yes=True,
        output=Format.JSON, data=target.data,
    )  # fmt: skip


def pd_of(target: Local, name: str) -> list[str] | None:
    target.look_again()
    tikv = target.region.idc(name).engines.kv.tikv
    return None if tikv is None else tikv.pd


def test_from_one_tikv_to_another_is_refused_before_anything_is_written(
    target: Local, idcs: Idcs
) -> None:
    migrate(target, Engine.TIKV, "fra", pd=[f"fra={NEW}"])
    before = sorted((path, path.read_bytes()) for path in target.data.rglob("*.yaml"))
    with pytest.raises(Failed, match=rf"fra is on the TiKV behind PD {NEW} already"):
        migrate(target, Engine.TIKV, "fra", pd=[f"fra={OTHER}"])
    assert sorted((path, path.read_bytes()) for path in target.data.rglob("*.yaml")) == before
    migrate(target, Engine.TIKV, "fra", pd=[f"fra={NEW}"])  # joins, or is done
    assert pd_of(target, "fra") == [NEW] and idcs.asked == ["fra", "fra"]


def test_a_tikv_that_the_region_file_does_not_name_is_not_given_another_address(
    target: Local, idcs: Idcs
) -> None:
    idcs.on["fra"] = "tikv"
    for pd in ([], [f"fra={NEW}"]):
        with pytest.raises(Failed, match="correct the file"):
            migrate(target, Engine.TIKV, "fra", pd=pd)
    assert pd_of(target, "fra") is None and idcs.asked == []


def test_an_idc_whose_tikv_is_elsewhere_gets_none_beside_it(
    target: Local, idcs: Idcs, waits: list[str]
) -> None:
    migrate(target, Engine.TIKV, "fra", pd=[f"fra={NEW}"])
    migrate(target, Engine.TIKV, "iad")
    found = Local.open(target.data)
    assert found.engine_names() == ["iad-pd", "iad-tikv"] == waits
    migrate(target, Engine.TIKV)  # fra's is there
    assert Local.open(target.data).engine_names() == [
        "iad-pd", "sin-pd", "iad-tikv", "sin-tikv"
    ]  # fmt: skip
    assert pd_of(target, "fra") == [NEW]
    migrate(target, Engine.TIKV, "iad", pd=["iad=" + str(pd_of(target, "iad"))[2:-2]])
    assert "iad-pd" in Local.open(target.data).engine_names()
    migrate(target, Engine.EMBEDDED, "fra")
    migrate(target, Engine.TIKV, "fra")
    assert "fra-pd" in Local.open(target.data).engine_names()


@pytest.mark.parametrize("error", [Failed("fra-pd did not serve within 120 s"), KeyboardInterrupt])
def test_what_fails_before_the_move_leaves_the_region_file_as_it_was(
    target: Local,
    idcs: Idcs,
    waits: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException | type[BaseException],
) -> None:
    ended: list[str] = []

    def wait(target: Local, name: str) -> None:
        raise error

    monkeypatch.setattr(Local, "_wait_for_engine", wait)
    monkeypatch.setattr(Local, "_stop", lambda target, names: ended.extend(names))
    with pytest.raises((Failed, KeyboardInterrupt)):
        migrate(target, Engine.TIKV, "fra", "iad")
    assert (pd_of(target, "fra"), pd_of(target, "iad"), idcs.asked) == (None, None, [])
    assert sorted(ended) == ["fra-pd", "fra-tikv", "iad-pd", "iad-tikv"]


def test_what_fails_beside_a_move_that_goes_on_leaves_that_its_tikv(
    target: Local, idcs: Idcs, waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target.begin_kv("tikv", {"fra": []})
    idcs.moves["fra"] = {"phase": "copy", "batches": 0, "played": 0}

    def wait(target: Local, name: str) -> None:
        raise Failed("fra-pd ended while starting")

    monkeypatch.setattr(Local, "_wait_for_engine", wait)
    with pytest.raises(Failed):
        migrate(target, Engine.TIKV, "fra", "iad")
    assert pd_of(target, "fra") is not None and pd_of(target, "iad") is None
