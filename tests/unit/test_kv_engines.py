"""On which engine a KV is: the note counts, and who may change it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from imcore.errors import BadInput, Refused, Unavailable
from imcore.region.model import KvEngine
from imctl.testing.lab import lab_region
from services.engines import moving_kv
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.node.config import NodeConfig, load
from services.node.kv_moves import EMBEDDED, NOTE, KvEngines, _progress, name_of, parse
from services.ports import Batch, Kv

TIKV = parse('{"tikv": {"pd": ["127.0.0.1:2379"]}}')


class Place:
    """A node's data folder. "tikv" is a second LMDB here: what is tested is who is asked."""

    def __init__(self, folder: Path, pki: Path) -> None:
        self.folder = folder
        self.pki = pki
        self.refuses = False
        self.answers = asyncio.Event()
        self.answers.set()

    def config(self, engine: str) -> NodeConfig:
        def edit(spec: dict[str, Any]) -> None:
            if engine == "tikv":
                spec["idcs"][0]["engines"] = {"kv": TIKV.model_dump(exclude_none=True)}

        region = lab_region(self.folder, edit)
        (self.folder / "data").mkdir(exist_ok=True)
        return load(region, "fra", self.folder / "data", self.pki, None, False)

    async def store(self, engine: KvEngine) -> Kv:
        await self.answers.wait()
        if self.refuses:
            raise Unavailable("PD does not answer")
        folder = self.folder / "data" / ("kv" if engine.tikv is None else "tikv")
        return await LmdbKv.open(str(folder), RealDisk())

    def engines(self, engine: str) -> KvEngines:
        return KvEngines(self.config(engine), RealDisk(), self.store)


@pytest.fixture
def place(tmp_path: Path, pki_dir: Path) -> Place:
    return Place(tmp_path, pki_dir)


async def moved(engines: KvEngines) -> None:
    for _ in range(600):
        if not engines.moving:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it moves for ever")


async def test_after_a_move_the_note_counts_whatever_the_file_says(place: Place) -> None:
    engines = place.engines("embedded")
    kv = await engines.open()
    epoch, _ = await kv.open_partition(0)
    await kv.commit(Batch(0, epoch, b"one", {b"\0\0a": b"1"}))
    engines.move_to(TIKV)
    engines.move_to(TIKV)  # joins
    with pytest.raises(Refused):
        engines.move_to(parse('{"tikv": {"pd": ["127.0.0.1:1"]}}'))
    await moved(engines)
    assert engines.problem is None and name_of(engines.current) == "tikv"
    assert not (place.folder / "data" / "kv-move").exists()
    await kv.close()

    again = place.engines("embedded")  # the file is older than the move
    kv = await again.open()
    assert await kv.get(b"\0\0a") == b"1"
    assert again.alarm is not None and "imctl migrate kv --to embedded" in again.alarm
    await kv.close()

    right = place.engines("tikv")
    kv = await right.open()
    assert await kv.get(b"\0\0a") == b"1" and right.alarm is None
    await kv.close()


async def test_from_one_tikv_to_another_is_refused_and_never_called_done(place: Place) -> None:
    engines = place.engines("tikv")
    kv = await engines.open()
    before = (place.folder / "data" / NOTE).read_bytes()
    for other in ('{"pd": ["127.0.0.1:1"]}', '{"pd": ["127.0.0.1:2379"], "prefix": "other"}'):
        with pytest.raises(Refused, match=r"on the TiKV behind PD 127\.0\.0\.1:2379 already"):
            engines.move_to(parse(f'{{"tikv": {other}}}'))
    engines.move_to(TIKV)
    assert not engines.moving and (_progress(engines).phase, engines.problem) == ("done", None)
    assert (place.folder / "data" / NOTE).read_bytes() == before
    await kv.close()


async def test_a_move_that_fails_says_why_and_changes_nothing(place: Place) -> None:
    engines = place.engines("embedded")
    kv = await engines.open()
    place.refuses = True
    engines.move_to(TIKV)
    await moved(engines)
    assert engines.problem == "PD does not answer" and name_of(engines.current) == "embedded"
    assert json.loads((place.folder / "data" / NOTE).read_text()) == "embedded"
    epoch, _ = await kv.open_partition(0)
    await kv.commit(Batch(0, epoch, b"goes on"))
    await kv.close()
    place.refuses = False
    kv = await place.engines("embedded").open()
    assert (await kv.open_partition(0))[1] == b"goes on"
    await kv.close()


async def test_a_move_says_that_it_opens_the_new_store_and_not_that_it_is_done(
    place: Place,
) -> None:
    engines = place.engines("embedded")
    kv = await engines.open()
    place.answers.clear()
    engines.move_to(TIKV)
    await asyncio.sleep(0)
    assert (_progress(engines).phase, _progress(engines).engine) == ("open", "embedded")
    move = {"phase": "open", "batches": 0, "played": 0}
    assert engines.status() == {"engine": "embedded", "move": move}
    place.answers.set()
    seen = set()
    while engines.moving:
        seen.add(_progress(engines).phase)
        await asyncio.sleep(0)
    assert "copy" in seen and not seen & {"done", "failed"}
    assert (_progress(engines).phase, engines.status()["move"]) == ("done", None)
    await kv.close()


@pytest.mark.parametrize("opened", [False, True])
async def test_a_move_ends_with_its_node(
    place: Place, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    engines = place.engines("embedded")
    await engines.open()
    copying, ended = asyncio.Event(), list[str]()

    async def restore(store: LmdbKv, snapshot: Path) -> None:
        copying.set()
        await asyncio.Event().wait()

    close = LmdbKv.close

    async def seen(store: LmdbKv) -> None:
        ended.append(Path(store._folder).name)
        await close(store)

    monkeypatch.setattr(LmdbKv, "restore", restore)
    monkeypatch.setattr(LmdbKv, "close", seen)
    if not opened:
        place.answers.clear()
    engines.move_to(TIKV)
    if opened:
        await copying.wait()
    await engines.close()
    assert not engines.moving and ended == (["tikv", "kv"] if opened else ["kv"])
    assert not (place.folder / "data" / "kv-move").exists()


async def test_a_move_that_is_cancelled_after_its_switch_was_not_cancelled(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving_kv, "_GRACE_S", 0.05)
    engines = place.engines("embedded")
    kv = await engines.open()
    engines.move_to(TIKV)
    while kv._opening.locked() or name_of(engines.current) != "tikv":  # noqa: ASYNC110
        await asyncio.sleep(0)
    await engines.cancel_move()
    assert (engines.problem, _progress(engines).phase) == (None, "done")
    await kv.close()


async def test_a_kv_of_before_the_notes_is_embedded(place: Place) -> None:
    engines = place.engines("tikv")
    await (await place.store(EMBEDDED)).close()
    kv = await engines.open()
    assert name_of(engines.current) == "embedded" and engines.alarm is not None
    await kv.close()


async def test_a_note_that_cannot_be_read_stops_the_start(place: Place) -> None:
    engines = place.engines("embedded")
    (place.folder / "data" / NOTE).write_text("{")
    with pytest.raises(BadInput, match=f"{NOTE} does not say on which engine"):
        await engines.open()
