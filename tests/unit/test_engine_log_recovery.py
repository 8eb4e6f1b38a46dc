"""What the log makes of its files after crashes and damage."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from imcore.errors import BadInput, Damaged, Unavailable
from imcore.words import Origin
from services.engines.disk import RealDisk
from services.engines.log_store import Damage, SegmentLogStore
from services.engines.recovery import recover
from services.engines.segment_log import SegmentLog
from services.ports import LogEnd, Record

FRA = Origin("fra", 1)
PARTITION = Path("logs/fra.1/0")


async def open_store(folder: Path, partitions: int = 1) -> SegmentLogStore:
    return await SegmentLogStore.open(
        str(folder), partitions, RealDisk(), random.Random(), segment_bytes=400
    )


async def append(log: SegmentLog, payload: bytes) -> Record:
    future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()

    def done(result: Sequence[Record] | Exception) -> None:
        assert not isinstance(result, Exception)
        future.set_result(result[0])

    log.append(0, 1, [payload], done)
    return await future


async def write(folder: Path, count: int, clean_close: bool = True) -> list[Record]:
    store = await open_store(folder)
    await store.confirm_boot()
    log = await store.open_own(FRA)
    records = [await append(log, b"payload %d" % n) for n in range(count)]
    description = (folder / "store.json").read_bytes()
    await store.close()
    if not clean_close:  # as a crash leaves it: without the ends that a close writes down
        (folder / "store.json").write_bytes(description)
    return records


def segments(folder: Path) -> list[Path]:
    return sorted((folder / PARTITION).glob("*.seg"))


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


async def read_all(log: SegmentLog) -> list[Record]:
    records: list[Record] = []
    while page := await log.read(0, len(records) + 1, 1 << 20):
        records += page
    return records


async def check_usable(folder: Path, records: list[Record]) -> None:
    """The log holds exactly these records, takes more, and keeps them."""
    store = await open_store(folder)
    log = await store.open_own(FRA)
    assert await read_all(log) == records
    more = await append(log, b"more")
    assert more.lsn == len(records) + 1
    await store.close()
    store = await open_store(folder)
    assert await read_all(await store.open_own(FRA)) == [*records, more]
    await store.close()


async def test_a_torn_tail_is_cut_at_any_byte(tmp_path: Path) -> None:
    records = await write(tmp_path, 3, clean_close=False)
    (path,) = segments(tmp_path)
    data = path.read_bytes()
    last = len(data) - (data.rindex(b"payload 2") - data.rindex(b"payload 1"))
    for size in range(last, len(data)):
        for tail in (b"", bytes(len(data) - size), bytes(100)):  # cut short, or not written
            path.write_bytes(data[:size] + tail)
            recovered = recover(RealDisk(), str(tmp_path / PARTITION), 0)
            recovered.files.close()
            assert (recovered.missing, recovered.end.lsn) == (None, 2), (size, tail)
            assert recovered.end.chain == records[1].chain
            assert path.read_bytes() == data[:last]
    store = await open_store(tmp_path)
    assert store.clean
    await store.close()
    await check_usable(tmp_path, records[:2])


async def test_damage_with_records_behind_it_is_no_torn_tail(tmp_path: Path) -> None:
    records = await write(tmp_path, 5, clean_close=False)
    (path,) = segments(tmp_path)
    flip(path, path.read_bytes().index(b"payload 2"))
    store = await open_store(tmp_path)
    assert not store.clean
    assert store.damage == [Damage(FRA, 0, 3, 5)]
    assert await read_all(await store.open_own(FRA)) == records[:2]
    assert list((tmp_path / PARTITION).glob("*.damaged")), "what was behind it is kept"
    await store.close()

    again = await open_store(tmp_path)  # nobody has decided about it yet
    assert not again.clean
    log = await again.open_own(FRA)
    await log.append_copy(records)  # refilled by peers
    await again.confirm_boot()
    assert again.clean
    await again.close()
    last = await open_store(tmp_path)
    assert last.clean
    await last.close()
    await check_usable(tmp_path, records)


async def test_damage_in_an_earlier_file_takes_the_later_ones_along(tmp_path: Path) -> None:
    records = await write(tmp_path, 40)
    paths = segments(tmp_path)
    assert len(paths) > 3
    second = int(paths[1].stem)
    flip(paths[1], 60)
    store = await open_store(tmp_path)
    assert not store.clean
    assert store.damage == [Damage(FRA, 0, second, 40)]
    await store.close()
    await check_usable(tmp_path, records[: second - 1])


async def test_a_missing_file_is_damage(tmp_path: Path) -> None:
    records = await write(tmp_path, 40)
    paths = segments(tmp_path)
    first = int(paths[2].stem)
    paths[2].unlink()
    store = await open_store(tmp_path)
    assert store.damage == [Damage(FRA, 0, first, 40)]
    await store.close()
    await check_usable(tmp_path, records[: first - 1])


async def test_a_bad_header_is_damage(tmp_path: Path) -> None:
    await write(tmp_path, 40)
    flip(segments(tmp_path)[0], 20)
    store = await open_store(tmp_path)
    assert store.damage == [Damage(FRA, 0, 1, 40)]
    await store.close()
    await check_usable(tmp_path, [])


async def test_a_log_shorter_than_its_written_end_is_damage(tmp_path: Path) -> None:
    records = await write(tmp_path, 3)  # the close wrote down that it ends at 3
    (path,) = segments(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    store = await open_store(tmp_path)
    assert store.damage == [Damage(FRA, 0, 3, 3)]
    await store.close()
    await check_usable(tmp_path, records[:2])


async def test_damage_of_a_copy_is_said_but_the_own_log_is_clean(tmp_path: Path) -> None:
    records = await write(tmp_path, 5)
    store = await open_store(tmp_path)
    copy = await store.open_copy(Origin("iad", 1))
    await copy.append_copy(records)
    await store.close()
    (path,) = (tmp_path / "logs/iad.1/0").glob("*.seg")
    flip(path, path.read_bytes().index(b"payload 2"))
    store = await open_store(tmp_path)
    assert store.clean
    assert store.damage == [Damage(Origin("iad", 1), 0, 3, 5)]
    await store.close()


async def test_a_read_of_bytes_that_went_bad_meanwhile_says_so(tmp_path: Path) -> None:
    await write(tmp_path, 5)
    store = await open_store(tmp_path)
    log = await store.open_own(FRA)
    (path,) = segments(tmp_path)
    flip(path, path.read_bytes().index(b"payload 2"))
    assert len(await log.read(0, 1, 1)) == 1
    with pytest.raises(Damaged):
        await log.read(0, 3, 1000)
    await store.close()


async def test_boot_counts_rise_in_two_steps(tmp_path: Path) -> None:
    seen = []
    for confirm in (True, False, False, True):
        store = await open_store(tmp_path)
        seen.append((store.confirmed_boot_count, store.last_boot_count, store.boot_count))
        if confirm:
            await store.confirm_boot()
            assert store.confirmed_boot_count == store.boot_count
        await store.close()
    store = await open_store(tmp_path)
    seen.append((store.confirmed_boot_count, store.last_boot_count, store.boot_count))
    await store.close()
    assert seen == [(0, 0, 1), (1, 1, 2), (1, 2, 3), (1, 3, 4), (4, 4, 5)]


async def test_a_second_opener_is_told_who_holds_it(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    with pytest.raises(Unavailable, match="in use by another process"):
        await open_store(tmp_path)
    await store.close()
    await (await open_store(tmp_path)).close()


async def test_what_does_not_fit_is_one_clear_line(tmp_path: Path) -> None:
    await write(tmp_path, 1)
    with pytest.raises(BadInput, match="has 1 partitions, the region file says 2"):
        await open_store(tmp_path, partitions=2)
    description = tmp_path / "store.json"
    data = description.read_bytes()
    description.write_bytes(data[:-20])
    with pytest.raises(BadInput, match=r"store\.json"):
        await open_store(tmp_path)
    description.unlink()
    with pytest.raises(BadInput, match=r"no store\.json"):
        await open_store(tmp_path)


async def test_a_copy_can_begin_at_a_snapshot(tmp_path: Path) -> None:
    records = await write(tmp_path / "a", 10)
    store = await open_store(tmp_path / "b")
    copy = await store.open_copy(FRA)
    await copy.start_at(0, LogEnd(6, records[5].chain, 1))
    assert (copy.first_lsn(0), copy.end(0).lsn) == (7, 6)
    await copy.append_copy(records[6:])
    with pytest.raises(LookupError):
        await copy.read(0, 6, 100)
    assert await copy.read(0, 7, 1000) == records[6:]
    with pytest.raises(ValueError, match="not empty"):
        await copy.start_at(0, LogEnd(0, bytes(16), 0))
    await store.close()
    store = await open_store(tmp_path / "b")
    assert store.damage == []
    assert await store.held()[FRA].read(0, 7, 1000) == records[6:]
    await store.close()
