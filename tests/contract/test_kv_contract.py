"""What every Kv adapter must do. A further adapter adds its factory to ADAPTERS."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from imcore.errors import BadInput, Damaged, StaleWriter
from imctl.testing.tikv import TikvProcesses
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.moving_kv import MovingKv
from services.engines.tikv.client import TikvSettings
from services.engines.tikv.kv import TikvKv
from services.im.keys import KEY_BYTES_MAX
from services.node.waiting import when_it_answers
from services.ports import Batch, Kv
from services.sim.disk import SimDisk

Opener = Callable[[], Awaitable[Kv]]
REAL_TIKV = "IM_TIKV_PD"  # "host:port[,host:port]": a TiKV that may be written to


def lmdb(folder: Path, request: pytest.FixtureRequest) -> Opener:
    async def opener() -> Kv:
        # A tiny map, so that it has to grow.
        return await LmdbKv.open(str(folder / "kv"), RealDisk(), map_bytes=64 * 1024)

    return opener


def simulated_disk(folder: Path, request: pytest.FixtureRequest) -> Opener:
    """The same adapter on the simulation's disk."""
    disk = SimDisk(folder, "contract")

    async def opener() -> Kv:
        return await LmdbKv.open(str(folder / "kv"), disk, map_bytes=64 * 1024)

    return opener


def moving(folder: Path, request: pytest.FixtureRequest) -> Opener:
    """Every process's KV stands behind one that can change its store."""

    async def opener() -> Kv:
        return MovingKv(await lmdb(folder, request)())

    return opener


def tikv(folder: Path, request: pytest.FixtureRequest) -> Opener:
    """Real PD, and a TiKV-protocol mock in the place of TiKV (docs/engines.md)."""
    processes: TikvProcesses = request.getfixturevalue("tikv_processes")
    return tikv_at((processes.pd.address,), folder)


def real_tikv(folder: Path, request: pytest.FixtureRequest) -> Opener:
    return tikv_at(tuple(os.environ[REAL_TIKV].split(",")), folder)


def tikv_at(pd: tuple[str, ...], folder: Path) -> Opener:
    settings = TikvSettings(pd, f"imctl-test/{secrets.token_hex(8)}")

    async def opener() -> Kv:
        kv = partial(TikvKv.open, settings, folder / "node", RealDisk(), SHADOWED)
        return await when_it_answers(kv, "TiKV")

    return opener


ADAPTERS = {"lmdb": lmdb, "simulated-disk": simulated_disk, "moving": moving, "tikv": tikv}
if REAL_TIKV in os.environ:
    ADAPTERS["real-tikv"] = real_tikv
SHADOWED = (b"o",)


@pytest.fixture(params=sorted(ADAPTERS))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return ADAPTERS[request.param](tmp_path, request)


@pytest.fixture
async def kv(opener: Opener) -> AsyncIterator[Kv]:
    opened = await opener()
    yield opened
    await opened.close()


def key(partition: int, name: str) -> bytes:
    return partition.to_bytes(2, "big") + name.encode()


async def put(kv: Kv, epoch: int, rows: dict[bytes, bytes], partition: int = 1) -> None:
    await kv.commit(Batch(partition, epoch, b"checkpoint", rows))


async def test_a_batch_puts_and_deletes_together(kv: Kv) -> None:
    epoch, checkpoint = await kv.open_partition(1)
    assert checkpoint is None
    await kv.commit(Batch(1, epoch, b"one", {key(1, "a"): b"1", key(1, "b"): b"2"}))
    await kv.commit(Batch(1, epoch, b"two", {key(1, "c"): b"3"}, {key(1, "a"), key(1, "none")}))
    assert await kv.get(key(1, "a")) is None
    assert await kv.get_many([key(1, "c"), key(1, "a"), key(1, "b")]) == [b"3", None, b"2"]
    assert (await kv.open_partition(1))[1] == b"two"


async def test_a_key_may_have_511_bytes_and_a_longer_one_is_a_defect(kv: Kv) -> None:
    """Not a fault that waiting could mend."""
    epoch, _ = await kv.open_partition(1)
    longest, longer = key(1, "x" * 509), key(1, "x" * 510)
    assert len(longest) == KEY_BYTES_MAX
    await put(kv, epoch, {longest: b"1"})
    assert await kv.get_many([longest]) == [b"1"]
    with pytest.raises(ValueError):
        await put(kv, epoch, {longer: b"1"})
    assert await kv.get(longer) is None


async def test_a_read_after_a_commit_sees_it(kv: Kv) -> None:
    epoch, _ = await kv.open_partition(1)
    for number in range(20):
        await put(kv, epoch, {key(1, "a"): b"%d" % number})
        assert await kv.get(key(1, "a")) == b"%d" % number


async def test_an_empty_value_is_not_a_missing_one(kv: Kv) -> None:
    epoch, _ = await kv.open_partition(1)
    await put(kv, epoch, {key(1, "a"): b""})
    assert await kv.get(key(1, "a")) == b""
    await kv.commit(Batch(1, epoch, b""))
    assert (await kv.open_partition(1))[1] == b""


async def test_scans_are_ordered_bounded_and_half_open(kv: Kv) -> None:
    epoch, _ = await kv.open_partition(1)
    rows = {key(1, f"k{n:03}"): b"%d" % n for n in range(100)}
    await put(kv, epoch, rows)
    other, _ = await kv.open_partition(2)
    await put(kv, other, {key(2, "k"): b"other"}, partition=2)
    ordered = sorted(rows.items())
    assert await kv.scan(key(1, "k010"), key(1, "k020"), 1000) == ordered[10:20]
    assert await kv.scan(key(1, "k010"), key(1, "k020"), 3) == ordered[10:13]
    assert await kv.scan(key(1, "k010"), key(1, "k020"), 3, reverse=True) == ordered[19:16:-1]
    assert await kv.scan(key(1, ""), key(2, ""), 1000) == ordered
    assert await kv.scan(key(1, ""), key(2, ""), 1000, reverse=True) == ordered[::-1]
    assert await kv.scan(key(1, "k0995"), key(9, ""), 5, reverse=True) == [(key(2, "k"), b"other")]
    assert await kv.scan(key(1, "l"), key(2, ""), 10) == []
    assert await kv.scan(key(0, ""), key(1, ""), 10, reverse=True) == []
    assert await kv.scan(key(1, "k010"), key(1, "k020"), 0) == []
    assert await kv.scan(key(1, "k020"), key(1, "k010"), 10) == []


@pytest.mark.parametrize("table", [b"o", b"e"])
async def test_scans_are_the_same_up_and_down(kv: Kv, table: bytes) -> None:
    """Whatever bytes keys are made of, and whether one is the beginning of another."""
    rng = random.Random(7)
    epoch, _ = await kv.open_partition(1)
    start, names = b"\0\1" + table, [b"", b"\0", b"\xff", b"\0\xff", b"a", b"a\0", b"ab", b"b"]
    rows = {
        start + rng.choice(names) + rng.choice(names) + rng.randrange(40).to_bytes(8, "big"): b"%d"
        % number
        for number in range(300)
    }
    rows |= {start + name: b"short" for name in names}
    gone = set(rng.sample(sorted(rows), 40))
    await kv.commit(Batch(1, epoch, b"one", rows | {b"\0\1a": b"below", b"\0\1z": b"above"}))
    await kv.commit(Batch(1, epoch, b"two", {}, gone))
    ordered = sorted((key_, value) for key_, value in rows.items() if key_ not in gone)
    bounds = [start, b"\0\1" + bytes([table[0] + 1]), *rng.sample(sorted(rows), 20)]
    for low in bounds:
        for high in rng.sample(bounds, 5):
            wanted = [row for row in ordered if low <= row[0] < high]
            limit = rng.choice([1, 3, 1_000])
            assert await kv.scan(low, high, limit) == wanted[:limit]
            assert await kv.scan(low, high, limit, reverse=True) == wanted[::-1][:limit]


async def test_a_new_applier_fences_off_the_old_one(kv: Kv) -> None:
    old, _ = await kv.open_partition(1)
    await put(kv, old, {key(1, "a"): b"1"})
    new, checkpoint = await kv.open_partition(1)
    assert new > old and checkpoint == b"checkpoint"
    with pytest.raises(StaleWriter):
        await put(kv, old, {key(1, "a"): b"stale"})
    with pytest.raises(StaleWriter):
        await kv.clear_partition(1, old, b"")
    assert await kv.get(key(1, "a")) == b"1"
    await put(kv, new, {key(1, "a"): b"2"})
    assert await kv.get(key(1, "a")) == b"2"


async def test_a_partition_that_was_not_opened_takes_no_commit(kv: Kv) -> None:
    with pytest.raises(StaleWriter):
        await put(kv, 0, {key(1, "a"): b"1"})


async def test_clearing_takes_only_the_partition(kv: Kv) -> None:
    epochs = {number: (await kv.open_partition(number))[0] for number in (1, 2, 3)}
    for number, epoch in epochs.items():
        rows = {key(number, f"k{n}"): bytes(500) for n in range(200)}
        await put(kv, epoch, rows, partition=number)
    await kv.clear_partition(2, epochs[2], b"cleared")
    assert await kv.scan(key(2, ""), key(3, ""), 10) == []
    assert len(await kv.scan(key(1, ""), key(9, ""), 1000)) == 400
    await put(kv, epochs[2], {key(2, "a"): b"again"}, partition=2)
    await kv.clear_partition(2, epochs[2], b"cleared")
    assert await kv.open_partition(2) == (epochs[2] + 1, b"cleared")


async def test_everything_is_there_after_a_restart(kv: Kv, opener: Opener) -> None:
    epoch, _ = await kv.open_partition(1)
    await put(kv, epoch, {key(1, f"k{n}"): bytes(1000) for n in range(1000)})
    await kv.sync()
    await put(kv, epoch, {key(1, "last"): b"x"})
    await kv.close()
    again = await opener()
    try:
        assert len(await again.scan(key(1, ""), key(2, ""), 5000)) == 1001
        assert await again.open_partition(1) == (epoch + 1, b"checkpoint")
    finally:
        await again.close()


async def filled(kv: Kv) -> int:
    """The epoch of partition 1."""
    epoch, _ = await kv.open_partition(1)
    await put(kv, epoch, {key(1, f"{n:03}"): b"%d" % n for n in range(300)} | {key(1, "x"): b""})
    other, _ = await kv.open_partition(2)
    await put(kv, other, {key(2, "a"): b"2"}, partition=2)
    return epoch


async def rows_of(kv: Kv, partition: int) -> list[tuple[bytes, bytes]]:
    return await kv.scan(key(partition, ""), key(partition + 1, ""), 1000)


async def test_a_snapshot_is_restored_in_place_of_everything(kv: Kv, tmp_path: Path) -> None:
    epoch = await filled(kv)
    before = [await rows_of(kv, partition) for partition in (1, 2)]
    await kv.snapshot(tmp_path / "backups" / "one")
    with pytest.raises(BadInput, match="exists already"):
        await kv.snapshot(tmp_path / "backups" / "one")
    await kv.commit(Batch(1, epoch, b"later", {key(1, "new"): b"1"}, {key(1, "000")}))
    third, _ = await kv.open_partition(3)
    await put(kv, third, {key(3, "a"): b"3"}, partition=3)
    await kv.restore(tmp_path / "backups" / "one")
    with pytest.raises(StaleWriter):
        await put(kv, epoch, {key(1, "late"): b"1"})
    assert [await rows_of(kv, partition) for partition in (1, 2)] == before
    assert await rows_of(kv, 3) == []
    assert (await kv.open_partition(1))[1] == b"checkpoint"
    assert (await kv.open_partition(3))[1] is None


async def test_one_partition_is_loaded_from_a_snapshot(kv: Kv, tmp_path: Path) -> None:
    epoch = await filled(kv)
    before = await rows_of(kv, 1)
    await kv.snapshot(tmp_path / "one")
    await kv.commit(Batch(1, epoch, b"later", {key(1, "new"): b"1"}, {key(1, "000")}))
    with pytest.raises(StaleWriter):
        await kv.load_partition(tmp_path / "one", 1, epoch - 1, b"loaded")
    await kv.load_partition(tmp_path / "one", 1, epoch, b"loaded")
    assert await rows_of(kv, 1) == before
    assert await rows_of(kv, 2) == [(key(2, "a"), b"2")]
    await put(kv, epoch, {key(1, "new"): b"2"})
    await kv.load_partition(tmp_path / "one", 1, epoch, b"loaded")
    assert await rows_of(kv, 1) == before
    assert (await kv.open_partition(1))[1] == b"loaded"


async def test_a_damaged_snapshot_is_refused_and_changes_nothing(kv: Kv, tmp_path: Path) -> None:
    epoch = await filled(kv)
    before = await rows_of(kv, 1)
    await kv.snapshot(tmp_path / "one")
    data = bytearray((tmp_path / "one" / "data.mdb").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "one" / "data.mdb").write_bytes(data)
    with pytest.raises(Damaged):
        await kv.load_partition(tmp_path / "one", 1, epoch, b"loaded")
    with pytest.raises(Damaged):
        await kv.restore(tmp_path / "one")
    with pytest.raises(BadInput, match="no KV snapshot"):
        await kv.restore(tmp_path)
    assert await rows_of(kv, 1) == before
    epoch, checkpoint = await kv.open_partition(1)
    assert checkpoint == b"checkpoint"
    await put(kv, epoch, {key(1, "new"): b"1"})
