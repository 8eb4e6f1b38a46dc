"""A power loss, as the KV's file would look after it: any unsynced page written or not."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from imcore.errors import DiskFull, Unavailable
from services.engines import lmdb_snapshot
from services.engines.disk import DiskFaults, RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.lmdb_steady import PAGE_BYTES
from services.ports import Batch

START, END = b"\0\1", b"\0\2"
Rows = dict[bytes, bytes]


async def commit_randomly(kv: LmdbKv, epoch: int, rng: random.Random, rows: Rows) -> None:
    """Puts and deletes of all sizes, so that pages are freed and would be used again."""
    batch = Batch(1, epoch, rng.randbytes(8))
    for _ in range(rng.randrange(1, 30)):
        batch.puts[START + b"%d" % rng.randrange(300)] = rng.randbytes(rng.choice((10, 300, 9000)))
    batch.deletes = {k for k in rows if rng.random() < 0.1} - batch.puts.keys()
    await kv.commit(batch)
    for key in batch.deletes:
        del rows[key]
    rows.update(batch.puts)
    rows[b"checkpoint"] = batch.checkpoint


async def rows_of(kv: LmdbKv) -> Rows:
    _, checkpoint = await kv.open_partition(1)
    assert checkpoint is not None
    return {**dict(await kv.scan(START, END, 10_000)), b"checkpoint": checkpoint}


def mix_pages(before: Path, after: Path, rng: random.Random) -> None:
    """Into ``after``: each page that was written since ``before`` is on disk, or it is not."""
    old, new = before.read_bytes(), after.read_bytes()
    share = rng.choice((0.1, 0.5, 0.9))
    with open(after, "rb+") as file:
        for at in range(0, len(new), PAGE_BYTES):
            if rng.random() < share:
                os.pwrite(file.fileno(), (old[at : at + PAGE_BYTES] or bytes(PAGE_BYTES)), at)


@pytest.mark.parametrize("seed", range(12))
async def test_a_power_loss_goes_back_to_the_last_sync(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    live, lost = tmp_path / "live", tmp_path / "lost"
    kv = await LmdbKv.open(str(live), RealDisk(), "boot 1")  # large: growing would sync
    epoch, _ = await kv.open_partition(1)
    rows: Rows = {}
    for _ in range(rng.randrange(3, 20)):
        await commit_randomly(kv, epoch, rng, rows)
        if rng.random() < 0.3:
            await kv.sync()
    await kv.sync()
    synced = dict(rows)
    shutil.copyfile(live / "data.mdb", tmp_path / "synced.mdb")
    for _ in range(rng.randrange(1, 40)):
        await commit_randomly(kv, epoch, rng, rows)
    lost.mkdir()
    for name in ("data.mdb", "steady", "running"):
        shutil.copyfile(live / name, lost / name)
    await kv.close()
    mix_pages(tmp_path / "synced.mdb", lost / "data.mdb", rng)

    back = await LmdbKv.open(str(lost), RealDisk(), "boot 2")
    try:
        assert back.rolled_back
        assert await rows_of(back) == synced
        for _ in range(20):  # it can be written as if nothing had been
            await commit_randomly(back, epoch + 1, rng, synced)
        assert await rows_of(back) == synced
    finally:
        await back.close()


async def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    rng, rows = random.Random(1), Rows()
    kv = await LmdbKv.open(str(tmp_path / "live"), RealDisk(), "boot 1")
    epoch, _ = await kv.open_partition(1)
    for _ in range(10):
        await commit_randomly(kv, epoch, rng, rows)
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "live", killed)
    await kv.close()
    again = await LmdbKv.open(str(killed), RealDisk(), "boot 1")
    assert not again.rolled_back
    assert await rows_of(again) == rows
    await again.close()


async def test_a_clean_close_needs_no_way_back(tmp_path: Path) -> None:
    rng, rows = random.Random(1), Rows()
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk(), "boot 1")
    epoch, _ = await kv.open_partition(1)
    await commit_randomly(kv, epoch, rng, rows)
    await kv.close()
    again = await LmdbKv.open(str(tmp_path / "kv"), RealDisk(), "boot 2")
    assert not again.rolled_back
    assert await rows_of(again) == rows
    await again.close()


async def test_without_a_way_back_it_begins_empty(tmp_path: Path) -> None:
    rng, rows = random.Random(1), Rows()
    folder = tmp_path / "kv"
    kv = await LmdbKv.open(str(folder), RealDisk(), "boot 1")
    epoch, _ = await kv.open_partition(1)
    await commit_randomly(kv, epoch, rng, rows)
    shutil.copytree(folder, tmp_path / "lost")
    await kv.close()
    (tmp_path / "lost" / "steady").write_bytes(b"rubbish" * 1000)
    again = await LmdbKv.open(str(tmp_path / "lost"), RealDisk(), "boot 2")
    assert again.rolled_back
    assert await again.open_partition(1) == (1, None)
    assert await again.scan(START, END, 10) == []
    await again.close()


async def test_a_file_of_rubbish_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "kv"
    folder.mkdir()
    (folder / "data.mdb").write_bytes(b"rubbish" * 10_000)
    kv = await LmdbKv.open(str(folder), RealDisk())
    assert kv.rolled_back
    assert await kv.open_partition(1) == (1, None)
    assert (folder / "data.mdb.damaged").exists()
    await kv.close()


async def test_a_full_disk_is_said_and_nothing_of_the_batch_is_there(tmp_path: Path) -> None:
    faults = DiskFaults()
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk(faults))
    epoch, _ = await kv.open_partition(1)
    faults.full = True
    with pytest.raises(DiskFull):
        await kv.commit(Batch(1, epoch, b"", {START: b"1"}))
    assert await kv.get(START) is None
    faults.full = False
    await kv.commit(Batch(1, epoch, b"", {START: b"1"}))
    assert await kv.get(START) == b"1"
    await kv.close()


async def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk())
    with pytest.raises(Unavailable, match="in use by another process"):
        await LmdbKv.open(str(tmp_path / "kv"), RealDisk())
    await kv.close()


async def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk(), sync_commits=50)
    epoch, _ = await kv.open_partition(1)
    for number in range(2000):
        await kv.commit(Batch(1, epoch, b"", {START + b"%d" % (number % 100): bytes(2000)}))
        if kv._background is not None and number % 50 == 0:
            await kv._background
    assert (tmp_path / "kv" / "data.mdb").stat().st_size < 8 << 20
    await kv.close()


async def test_a_snapshot_that_has_no_room_is_not_restored_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kv"
    kv = await LmdbKv.open(str(folder), RealDisk())
    rows: Rows = {}
    await commit_randomly(kv, (await kv.open_partition(1))[0], random.Random(1), rows)
    await kv.snapshot(tmp_path / "one")

    def full(source: Path, to: Path) -> None:
        to.write_bytes(source.read_bytes()[:5_000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(DiskFull, match=r"cannot copy .*: the disk is full"):
            await kv.restore(tmp_path / "one")
    assert await rows_of(kv) == rows
    assert "restored.mdb" not in os.listdir(folder)
    await kv.close()
    (folder / "restored.mdb").write_bytes(b"of one that was killed")
    kv = await LmdbKv.open(str(folder), RealDisk())
    assert "restored.mdb" not in os.listdir(folder)
    assert await rows_of(kv) == rows
    await kv.close()


async def test_that_it_went_back_is_told_until_somebody_works_with_it(tmp_path: Path) -> None:
    """The first start after the power loss may die before anybody has heard of it."""
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk(), "boot 1")
    epoch, _ = await kv.open_partition(0)
    await kv.commit(Batch(0, epoch, b"c", {b"\0\0a": b"1"}))
    shutil.copytree(tmp_path / "kv", tmp_path / "lost")
    await kv.close()
    first = await LmdbKv.open(str(tmp_path / "lost"), RealDisk(), "boot 2")
    assert first.rolled_back
    shutil.copytree(tmp_path / "lost", tmp_path / "killed")
    await first.close()
    second = await LmdbKv.open(str(tmp_path / "killed"), RealDisk(), "boot 2")
    assert second.rolled_back
    await second.open_partition(0)
    await second.close()
    third = await LmdbKv.open(str(tmp_path / "killed"), RealDisk(), "boot 2")
    assert not third.rolled_back
    await third.close()


async def test_folding_goes_on_while_a_snapshot_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the map is nearly full, and cannot grow meanwhile."""
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk(), "boot 1", map_bytes=16 << 20)
    epoch, _ = await kv.open_partition(1)
    ended = threading.Event()
    verify = lmdb_snapshot._verify

    def held_up(*arguments: Any) -> Any:
        assert ended.wait(20.0)
        return verify(*arguments)

    monkeypatch.setattr(lmdb_snapshot, "_verify", held_up)
    size = 1 << 20
    for number in range(9):
        await kv.commit(Batch(1, epoch, b"c", {START + b"%d" % number: bytes(size)}))
    snapshot = asyncio.ensure_future(kv.snapshot(tmp_path / "snapshot"))
    await asyncio.sleep(0.2)
    async with asyncio.timeout(10):
        for number in range(9):
            await kv.commit(Batch(1, epoch, b"c", {START + b"%d" % (9 + number): bytes(size)}))
    assert not snapshot.done()
    ended.set()
    await snapshot
    await kv.close()


async def test_a_file_that_cannot_be_opened_just_now_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the only snapshot that there is would be thrown away."""
    kv = await LmdbKv.open(str(tmp_path / "kv"), RealDisk(), "boot 1")
    await kv.open_partition(1)
    await kv.snapshot(tmp_path / "snapshot")
    await kv.close()

    def none_left(file: Any) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(lmdb_snapshot, "_digest", none_left)
        with pytest.raises(Unavailable, match="Too many open files"):
            lmdb_snapshot.checked(tmp_path / "snapshot")
    assert lmdb_snapshot.checked(tmp_path / "snapshot") == {}
