"""Cuts, rebuilds and starts from a snapshot, on real stores; of one IDC, whose word is enough."""

from __future__ import annotations

import asyncio
import errno
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imcore.attest import content_hash
from imcore.convert import key_pb
from imcore.errors import Damaged, DiskFull, Unavailable
from imcore.hlc import Hlc
from imcore.proto import oplog_pb2 as oplog
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc
from imcore.region.model import Retention as Settings
from imcore.runtime import ManualClock
from imcore.words import ClientKey, Origin
from services.engines import lmdb_snapshot
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.im.applier import Applier
from services.im.cache import ConversationCache
from services.im.incarnation import Register, Seal
from services.node import bootstrap, registers
from services.node.bootstrap import Bootstrap
from services.node.convergence import partition_hash
from services.node.retention import Retention, Shelf
from services.node.seals import Seals
from services.ports import Log, Record
from services.retention.decide import SEAL_COMMIT_S
from services.retention.shelf import DESCRIPTION
from services.retention.start import Range

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
CONVERSATION = "d:ann:bob"
SETTINGS = Settings(log_bytes=40_000, segment_bytes=4_096)


class Bench:
    """One partition of ``fra`` with its own log and a copy of that of ``iad``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.seals = Seals()
        self.disk = RealDisk()

    async def open(self) -> None:
        self.store = await SegmentLogStore.open(
            str(self.folder / "log"), 1, self.disk, random.Random(1), SETTINGS.segment_bytes
        )
        self.own = await self.store.open_own(FRA)
        self.copy = await self.store.open_copy(IAD)
        self.kv = await LmdbKv.open(str(self.folder / "kv"), self.disk)
        self.shelf = Shelf(self.folder / "snapshots", self.disk, self.clock)
        await self.shelf.load()
        self.retention = Retention(
            "fra", ["fra"], 1, SETTINGS, self.shelf, self.store, self.kv, {}, self.seals,
            self.read_seals, frozenset, lambda origin: {0: self.applier.applied().get(origin, 0)},
            self.clock,
        )  # fmt: skip
        await self.take_over()

    async def take_over(self) -> None:
        self.cache = ConversationCache(self.kv, 0)
        self.applier = Applier(
            0, self.kv, self.store, self.cache, Hlc(), lambda origin, effects: None
        )
        self.applier.base = self.retention
        await self.applier.open()

    async def read_seals(self) -> bool:
        return True

    async def close(self) -> None:
        await self.kv.close()
        await self.store.close()

    async def look(self) -> None:
        self.clock.advance(SEAL_COMMIT_S)
        await self.retention.check()

    async def until_cut(self) -> None:
        for _ in range(4):
            await self.look()
        assert self.own.first_lsn(0) > 1
        assert self.copy.first_lsn(0) > 1


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    opened = Bench(tmp_path)
    await opened.open()
    yield opened
    await opened.close()


def message(uid: str, seq: int, hlc: int) -> bytes:
    op = oplog.Op(hlc=hlc, conversation=CONVERSATION, seq=seq)
    op.message.key.CopyFrom(key_pb(ClientKey(uid, "phone", "o1", CONVERSATION, seq)))
    op.message.content = b"x" * 300
    op.message.content_hash = content_hash(op.message.content)
    return op.SerializeToString()


async def append(log: Log, payloads: Sequence[bytes]) -> None:
    for payload in payloads:
        durable: asyncio.Future[Sequence[Record] | Exception]
        durable = asyncio.get_running_loop().create_future()
        log.append(0, 1, [payload], durable.set_result)
        assert not isinstance(await durable, Exception)


async def records_of(folder: Path, count: int) -> list[Record]:
    """What ``iad`` has logged."""
    store = await SegmentLogStore.open(str(folder), 1, RealDisk(), random.Random(2))
    log = await store.open_own(IAD)
    await append(log, [message("bob", n, 2 * n) for n in range(1, count + 1)])
    records: list[Record] = []
    while len(records) < count:
        records += await log.read(0, len(records) + 1, 1 << 20)
    await store.close()
    return records


async def filled(bench: Bench, tmp_path: Path) -> list[Record]:
    """60 messages of each origin are folded, 20 more of ``iad`` are not here yet."""
    theirs = await records_of(tmp_path / "iad", 80)
    await append(bench.own, [message("ann", n, 2 * n + 1) for n in range(1, 61)])
    for record in theirs[:60]:
        await bench.copy.append_copy([record])
    await bench.applier.drain()
    return theirs


async def state(kv: LmdbKv) -> tuple[bytes, int]:
    found = await partition_hash(kv, 0)
    return found.hash, found.rows


async def folded_from_the_start(bench: Bench, tmp_path: Path, theirs: list[Record]) -> Any:
    """The state of an IDC that has never cut anything and got only these records of ``iad``."""
    whole = Bench(tmp_path / "whole")
    await whole.open()
    await append(whole.own, [message("ann", n, 2 * n + 1) for n in range(1, 61)])
    await whole.copy.append_copy(theirs)
    await whole.applier.drain()
    found = await state(whole.kv)
    await whole.close()
    return found


async def test_logs_are_cut_below_a_safe_snapshot_and_nothing_else_is_lost(
    bench: Bench, tmp_path: Path
) -> None:
    theirs = await filled(bench, tmp_path)
    before = await state(bench.kv)
    await bench.look()
    assert [d.safe for d in bench.shelf.kept] == [False]
    assert bench.own.first_lsn(0) == 1
    await bench.until_cut()
    assert bench.retention.log_bytes() <= SETTINGS.log_bytes
    assert [d.safe for d in bench.shelf.kept] == [True]
    vector = bench.shelf.kept[0].vector
    assert vector == {FRA: (60,), IAD: (60,)}
    assert (await bench.own.read(0, 60, 1))[0].lsn == 60
    assert await state(bench.kv) == before
    await bench.copy.append_copy(theirs[60:])
    await bench.applier.drain()
    assert await state(bench.kv) == await folded_from_the_start(bench, tmp_path, theirs)


async def test_after_a_seal_a_partition_is_folded_again_from_the_snapshot(
    bench: Bench, tmp_path: Path
) -> None:
    theirs = await filled(bench, tmp_path)
    await bench.until_cut()
    await bench.copy.append_copy(theirs[60:])
    await bench.applier.drain()
    bench.seals.learn("iad", Register(2, "", 0, (Seal(1, (70,)),)))
    await bench.copy.cut_above(0, 70)
    assert await bench.applier.seal({IAD: 70})
    await bench.applier.drain()
    assert bench.applier.applied() == {FRA: 60, IAD: 70}
    assert await state(bench.kv) == await folded_from_the_start(bench, tmp_path, theirs[:70])


async def test_no_head_is_told_while_a_partition_is_folded_again(
    bench: Bench, tmp_path: Path
) -> None:
    """It would be lower than the seqs that were given out."""
    await filled(bench, tmp_path)
    assert (await bench.cache.load(CONVERSATION)).heads[FRA] == 60
    await bench.copy.cut_above(0, 50)
    assert await bench.applier.seal({IAD: 50})
    assert bench.cache.get(CONVERSATION) is None
    loading = asyncio.ensure_future(bench.cache.load(CONVERSATION))
    await asyncio.sleep(0)
    assert not loading.done()
    await bench.applier.drain()
    assert (await loading).heads == {FRA: 60, IAD: 50}
    assert bench.cache.get(CONVERSATION) is await loading


async def test_a_seal_below_the_snapshot_is_refused_and_nothing_is_thrown_away(
    bench: Bench, tmp_path: Path
) -> None:
    await filled(bench, tmp_path)
    await bench.until_cut()
    before = await state(bench.kv)
    with pytest.raises(Damaged, match="above its seal at 50"):
        await bench.applier.seal({IAD: 50})
    await bench.applier.drain()
    assert bench.applier.applied() == {FRA: 60, IAD: 60}
    assert await state(bench.kv) == before


def beginning(bench: Bench, folder: Path) -> Bootstrap:
    node: Any = SimpleNamespace(
        kv=bench.kv, disk=bench.disk, store=bench.store, idc="fra",
        retention=bench.retention, rng=random.Random(3),
        config=SimpleNamespace(
            data=folder, region=SimpleNamespace(spec=SimpleNamespace(partitions=1))
        ),
    )  # fmt: skip
    return Bootstrap(node)


@pytest.mark.parametrize("lost", [False, True])
async def test_a_kv_that_is_lost_though_the_logs_are_whole_gives_out_its_numbers_anew(
    bench: Bench, tmp_path: Path, lost: bool
) -> None:
    """Tokens of before name what stands under other numbers by then."""
    await filled(bench, tmp_path)
    await bench.close()
    if lost:
        (tmp_path / "kv" / "data.mdb").unlink()
    await bench.open()
    start = beginning(bench, tmp_path)
    assert await start.mend()
    assert (start.timeline_life() != bench.store.log_id) == lost


async def test_a_kv_that_is_lost_starts_from_the_own_snapshot(bench: Bench, tmp_path: Path) -> None:
    theirs = await filled(bench, tmp_path)
    await bench.until_cut()
    await bench.copy.append_copy(theirs[60:])
    await bench.close()
    (tmp_path / "kv" / "data.mdb").unlink()
    await bench.open()
    start = beginning(bench, tmp_path)
    assert start.timeline_life() == bench.store.log_id
    assert await start.mend()
    assert start.timeline_life() != bench.store.log_id
    await bench.take_over()
    await bench.applier.drain()
    assert await state(bench.kv) == await folded_from_the_start(bench, tmp_path, theirs)


async def test_a_snapshot_that_does_not_verify_permits_nothing(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy that the engine makes lacks a row."""
    await filled(bench, tmp_path)
    digest = lmdb_snapshot._synced_digest

    def lose_a_row(path: Path) -> str:
        import lmdb

        with lmdb.open(str(path.parent), max_dbs=2) as env:
            rows = env.open_db(lmdb_snapshot.ROWS)
            with env.begin(write=True, db=rows) as txn, txn.cursor() as cursor:
                assert cursor.first() and cursor.delete()
        return digest(path)

    monkeypatch.setattr(lmdb_snapshot, "_synced_digest", lose_a_row)
    for _ in range(3):
        with pytest.raises(Damaged, match="does not hold the state"):
            await bench.look()
    assert bench.shelf.kept == []
    assert list((tmp_path / "snapshots").iterdir()) == []
    assert bench.own.first_lsn(0) == 1


async def test_a_snapshot_that_rots_on_disk_is_thrown_away(bench: Bench, tmp_path: Path) -> None:
    await filled(bench, tmp_path)
    await bench.until_cut()
    data = bench.shelf.path(bench.shelf.kept[0].name) / lmdb_snapshot.DATA
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert await bench.shelf.newest_safe() is None
    assert bench.shelf.kept == []
    assert bench.retention.alarms()


async def test_a_snapshot_that_cannot_be_described_leaves_nothing_on_the_full_disk(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes another one, so what they left would take all the room that there is."""
    await filled(bench, tmp_path)
    write_whole = bench.disk.write_whole

    def no_room(path: str, data: bytes) -> None:
        if path.endswith(DESCRIPTION):
            raise DiskFull(f"cannot write {path}: the disk is full")
        write_whole(path, data)

    monkeypatch.setattr(bench.disk, "write_whole", no_room)
    for _ in range(2):
        with pytest.raises(DiskFull):
            await bench.look()
    assert list((tmp_path / "snapshots").iterdir()) == []
    monkeypatch.undo()
    await bench.until_cut()


class Given:
    """In the place of ``Fetch``: gives the snapshot that lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def header(self) -> peer.SnapshotHeader:
        text = (self._folder / DESCRIPTION).read_text()
        digest = lmdb_snapshot.manifest_digest(self._folder)
        return peer.SnapshotHeader(name="theirs", digest=digest, description=text)

    async def into(self, path: Path, header: peer.SnapshotHeader) -> None:
        shutil.copyfile(self._folder / lmdb_snapshot.DATA, path)

    def cancel(self) -> None:
        pass


@pytest.fixture
async def cut_off(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Bench, Bootstrap]]:
    """A blank IDC, and what starts it from the snapshot of ``fra``."""
    await filled(bench, tmp_path)
    await bench.until_cut()
    given = bench.shelf.path(bench.shelf.kept[-1].name)
    ends = peer.EndsReply()
    stub = SimpleNamespace(Ends=lambda request, timeout: asyncio.sleep(0, ends))
    monkeypatch.setattr(peer_pb2_grpc, "LogsStub", lambda channel: stub)
    monkeypatch.setattr(bootstrap, "Fetch", lambda channel, name: Given(given))
    blank = Bench(tmp_path / "blank")
    await blank.open()
    node: Any = SimpleNamespace(
        kv=blank.kv, disk=blank.disk, store=blank.store, idc="iad", channels={"fra": None},
        retention=blank.retention, rng=random.Random(3),
        config=SimpleNamespace(
            data=tmp_path / "blank", region=SimpleNamespace(spec=SimpleNamespace(partitions=1))
        ),
    )  # fmt: skip
    yield blank, Bootstrap(node)
    await blank.close()


async def test_a_start_from_a_snapshot_that_finds_no_room_leaves_nothing_of_each_try(
    cut_off: tuple[Bench, Bootstrap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank, start = cut_off
    shelf, kv = tmp_path / "blank" / "snapshots", tmp_path / "blank" / "kv"
    copyfile = shutil.copyfile

    def no_room(source: Path, target: Path) -> None:
        copyfile(source, target)
        if target.parent == kv:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", no_room)
    for _ in range(2):
        with pytest.raises(DiskFull):
            await start._from("fra")
    assert list(shelf.iterdir()) == [] and blank.shelf.kept == []
    assert not (kv / "restored.mdb").exists()
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(Unavailable, match="ahead of the own log"):  # that is of this bench
        await start._from("fra")
    assert len(list(shelf.iterdir())) == len(blank.shelf.kept) == 1


async def test_a_start_that_waits_for_a_newer_snapshot_keeps_none_that_does_not_fit(
    cut_off: tuple[Bench, Bootstrap], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, start = cut_off
    far = {(IAD, 0): Range(500, 600)}  # held here, and not by who gives the snapshot
    monkeypatch.setattr(bootstrap, "ranges_here", lambda store: far)
    for _ in range(2):
        with pytest.raises(LookupError, match="held from 500"):
            await start._from("fra")
    assert list((tmp_path / "blank" / "snapshots").iterdir()) == []


@pytest.fixture
def damaged(tmp_path: Path) -> Any:
    """A node whose own log cannot be folded any more."""

    async def act(store: object, partitions: object) -> None:
        raise Damaged("fra.1 is sealed at 3, and that record is cut away here")

    node: Any = SimpleNamespace(
        idc="fra", channels={}, disk=RealDisk(), begun_again=0, partitions=[], store=None,
        seals=SimpleNamespace(act=act, problem=None),
        config=SimpleNamespace(
            data=tmp_path, peer_idcs=lambda: ["iad"],
            region=SimpleNamespace(spec=SimpleNamespace(partitions=1)),
        ),
    )  # fmt: skip
    node.begin_again = lambda: setattr(node, "begun_again", node.begun_again + 1)
    node.bootstrap = Bootstrap(node)
    return node


async def test_no_snapshot_is_demanded_before_another_idc_offers_one(
    damaged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it asks, it would wait at its next start for what nobody has."""
    demand = damaged.config.data / "snapshot-demanded"
    has = False

    async def asked(channels: object, names: object) -> bool:
        assert not demand.exists()
        return has

    monkeypatch.setattr(bootstrap, "offers", asked)
    await registers._act(damaged)
    assert not demand.exists() and not damaged.begun_again
    has = True
    await registers._act(damaged)
    assert demand.exists() and damaged.begun_again == 1


async def test_a_demand_that_a_full_disk_does_not_take_ends_no_process(
    damaged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "offers", lambda channels, names: asyncio.sleep(0, True))
    damaged.disk.faults.full = True
    assert await registers._act(damaged)
    assert not damaged.begun_again
    assert "cut away" in damaged.seals.problem
