"""What every Log and LogStore adapter must do. A further adapter adds its factory to ADAPTERS."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from imcore.errors import Damaged, StaleWriter
from imcore.words import Origin
from imctl.testing.kafka import KafkaProcess
from services.engines.disk import RealDisk
from services.engines.kafka.log_store import KafkaLogStore
from services.engines.log_store import SegmentLogStore
from services.ports import Log, LogStore, Record
from services.sim.disk import SimDisk

PARTITIONS = 3
FRA = Origin("fra", 1)
Opener = Callable[[], Awaitable[LogStore]]


def segment_files(request: pytest.FixtureRequest, folder: Path) -> Opener:
    # Tiny segments, so that every test crosses their borders.
    async def opener() -> LogStore:
        path = str(folder / "log")
        return await SegmentLogStore.open(
            path, PARTITIONS, RealDisk(), random.Random(1), segment_bytes=400
        )

    return opener


def simulated_disk(request: pytest.FixtureRequest, folder: Path) -> Opener:
    """The same adapter on the simulation's disk."""
    disk = SimDisk(folder / "disk", "contract")

    async def opener() -> LogStore:
        path = str(folder / "disk" / "log")
        return await SegmentLogStore.open(
            path, PARTITIONS, disk, random.Random(1), segment_bytes=400
        )

    return opener


def on_kafka(request: pytest.FixtureRequest, folder: Path) -> Opener:
    process: KafkaProcess = request.getfixturevalue("kafka_process")
    settings = process.settings(f"contract-{secrets.token_hex(4)}")

    # Hints so dense that every test crosses some.
    async def opener() -> LogStore:
        return await KafkaLogStore.open(
            settings, "fra", PARTITIONS, random.Random(1), step_bytes=400
        )

    return opener


ADAPTERS = {
    "segment-files": segment_files,
    "simulated-disk": simulated_disk,
    "kafka": on_kafka,
}


@pytest.fixture(params=sorted(ADAPTERS))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return ADAPTERS[request.param](request, tmp_path)


@pytest.fixture
async def store(opener: Opener) -> AsyncIterator[LogStore]:
    opened = await opener()
    yield opened
    await opened.close()


async def append(log: Log, partition: int, epoch: int, *payloads: bytes) -> list[Record]:
    future: asyncio.Future[list[Record]] = asyncio.get_running_loop().create_future()

    def done(result: Sequence[Record] | Exception) -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(list(result))

    log.append(partition, epoch, payloads, done)
    return await future


async def read_all(log: Log, partition: int, limit_bytes: int = 100) -> list[Record]:
    records: list[Record] = []
    lsn = log.first_lsn(partition)
    while page := await log.read(partition, lsn, limit_bytes):
        records += page
        lsn = page[-1].lsn + 1
    return records


async def fill(log: Log, partition: int, count: int) -> list[Record]:
    """One write each, so that segments roll."""
    records: list[Record] = []
    for number in range(count):
        records += await append(log, partition, 1, b"payload %d" % number)
    return records


async def test_an_empty_log_ends_at_zero(store: LogStore) -> None:
    log = await store.open_own(FRA)
    assert log.end(0) == (0, bytes(16), 0)
    assert log.first_lsn(0) == 1
    assert await log.read(0, 1, 1000) == []
    assert store.own() is log
    assert store.held() == {FRA: log}


async def test_appended_records_are_read_back_in_order(store: LogStore) -> None:
    log = await store.open_own(FRA)
    written = await append(log, 0, 1, b"a", b"b") + await append(log, 0, 2, b"c")
    assert [(r.lsn, r.epoch, r.payload) for r in written] == [
        (1, 1, b"a"),
        (2, 1, b"b"),
        (3, 2, b"c"),
    ]
    assert log.end(0) == (3, written[-1].chain, 2)
    assert log.end(1).lsn == 0
    assert await log.read(0, 1, 1000) == written
    assert await log.read(0, 3, 1000) == written[2:]
    assert await log.read(0, 4, 1000) == []


async def test_lsns_are_given_at_once_and_callbacks_come_in_lsn_order(store: LogStore) -> None:
    log = await store.open_own(FRA)
    order: list[int] = []
    finished = asyncio.Event()

    def done(result: Sequence[Record] | Exception) -> None:
        assert not isinstance(result, Exception)
        for record in result:
            assert log.end(0).lsn >= record.lsn, "durable before it is told"
            order.append(record.lsn)
        if len(order) == 60:
            finished.set()

    given = []
    for _ in range(3):  # several groups, some of them while an fsync is under way
        given += [log.append(0, 1, [b"x", b"y"], done) for _ in range(10)]
        assert log.end(0).lsn < given[-1], "nothing is durable before the loop has turned"
        await asyncio.sleep(0)
    await finished.wait()
    assert given == list(range(1, 60, 2))
    assert order == list(range(1, 61))


async def test_an_append_of_an_older_epoch_is_stale(store: LogStore) -> None:
    log = await store.open_own(FRA)
    await append(log, 0, 2, b"marker")
    with pytest.raises(StaleWriter):
        await append(log, 0, 1, b"late")
    assert [r.payload for r in await append(log, 0, 2, b"next")] == [b"next"]
    assert log.end(0).lsn == 2


async def test_a_subscriber_is_called_after_the_end_has_risen(store: LogStore) -> None:
    log = await store.open_own(FRA)
    ends: list[int] = []
    unsubscribe = log.subscribe(lambda: ends.append(log.end(1).lsn))
    await append(log, 1, 1, b"a")
    unsubscribe()
    await append(log, 1, 1, b"b")
    assert ends == [1]


async def test_everything_is_there_after_a_restart(store: LogStore, opener: Opener) -> None:
    log = await store.open_own(FRA)
    written = await fill(log, 0, 40)
    copied = (await store.open_copy(Origin("iad", 2))).origin
    before = store.log_id, store.boot_count
    await store.close()

    again = await opener()
    try:
        assert again.log_id == before[0]
        assert again.boot_count == before[1] + 1
        assert again.clean
        assert set(again.held()) == {FRA, copied}
        log = await again.open_own(FRA)
        assert await read_all(log, 0) == written
        assert log.end(0) == (40, written[-1].chain, 1)
        (more,) = await append(log, 0, 1, b"after")
        assert more.lsn == 41
    finally:
        await again.close()


async def test_a_new_incarnation_keeps_the_old_log_as_a_copy(store: LogStore) -> None:
    old = await store.open_own(FRA)
    written = await append(old, 0, 1, b"a")
    new = await store.open_own(Origin("fra", 2))
    assert store.own() is new and new.end(0).lsn == 0
    assert await store.held()[FRA].read(0, 1, 100) == written
    with pytest.raises(ValueError, match="copy"):
        old.append(0, 1, [b"b"], lambda result: None)
    with pytest.raises(ValueError, match="is over"):
        await store.open_own(FRA)


async def test_a_copy_takes_records_with_their_positions(store: LogStore) -> None:
    source = await store.open_own(FRA)
    written = await fill(source, 0, 5) + await fill(source, 2, 2)
    copy = await store.open_copy(Origin("sin", 1))
    await copy.append_copy(written[:3])
    await copy.append_copy(written)  # held ones are dropped
    assert await read_all(copy, 0) == written[:5]
    assert await read_all(copy, 2) == written[5:]
    assert copy.end(0) == source.end(0)


async def test_concurrent_copies_of_the_same_records_wait_until_they_are_durable(
    store: LogStore,
) -> None:
    source = await store.open_own(FRA)
    written = await fill(source, 0, 5)
    copy = await store.open_copy(Origin("sin", 1))

    async def take() -> int:
        await copy.append_copy(written)
        return copy.end(0).lsn

    ends = await asyncio.gather(take(), take(), take())
    assert list(ends) == [5, 5, 5]


async def test_a_copy_refuses_what_does_not_continue_it(store: LogStore) -> None:
    source = await store.open_own(FRA)
    written = await fill(source, 0, 4)
    copy = await store.open_copy(Origin("sin", 1))
    await copy.append_copy(written[:2])
    other = written[2]._replace(payload=b"another history")
    for wrong in ([written[3]], [other], [written[2]._replace(partition=PARTITIONS)]):
        with pytest.raises(Damaged):
            await copy.append_copy(wrong)
    with pytest.raises(Damaged):  # held already, and different
        await copy.append_copy([written[1]._replace(chain=bytes(16))])
    await copy.append_copy(written)
    assert await read_all(copy, 0) == written


async def test_truncation_forgets_only_what_lies_below(store: LogStore) -> None:
    log = await store.open_own(FRA)
    written = await fill(log, 0, 40)
    await log.truncate_below(0, 25)
    first = log.first_lsn(0)
    assert 1 < first <= 25
    assert await read_all(log, 0) == written[first - 1 :]
    with pytest.raises(LookupError):
        await log.read(0, first - 1, 100)
    await log.truncate_below(0, 1000)
    assert log.end(0).lsn == 40
    (more,) = await append(log, 0, 1, b"after")
    assert more.lsn == 41


async def test_a_cut_forgets_what_lies_above(store: LogStore, opener: Opener) -> None:
    source = await store.open_own(FRA)
    written = await fill(source, 0, 40)
    copy = await store.open_copy(Origin("sin", 1))
    for record in written:
        await copy.append_copy([record])
    await copy.cut_above(0, 100)
    assert copy.end(0).lsn == 40
    for keep in (33, 20, 0):
        await copy.cut_above(0, keep)
        assert copy.end(0).lsn == keep
        assert await read_all(copy, 0) == written[:keep]
        await copy.append_copy(written[keep:35])
        assert await read_all(copy, 0) == written[:35]
    await store.close()
    again = await opener()
    try:
        assert again.clean, "a cut is no damage"
        assert await read_all(again.held()[Origin("sin", 1)], 0) == written[:35]
    finally:
        await again.close()


async def test_the_own_log_is_never_cut(store: LogStore) -> None:
    log = await store.open_own(FRA)
    await append(log, 0, 1, b"a")
    with pytest.raises(ValueError, match="never cut"):
        await log.cut_above(0, 0)


async def test_a_record_larger_than_any_read_is_read_alone(store: LogStore) -> None:
    log = await store.open_own(FRA)
    large = random.Random(2).randbytes(700_000)
    written = await append(log, 0, 1, b"small", large, b"small again")
    assert await read_all(log, 0, limit_bytes=10) == written


async def test_reads_go_on_while_others_append(store: LogStore) -> None:
    log = await store.open_own(FRA)
    seen: list[Record] = []

    async def follow() -> None:
        changed = asyncio.Event()
        unsubscribe = log.subscribe(changed.set)
        while len(seen) < 50:
            page = await log.read(0, len(seen) + 1, 60)
            seen.extend(page)
            if not page:
                await changed.wait()
                changed.clear()
        unsubscribe()

    _, written = await asyncio.gather(follow(), fill(log, 0, 50))
    assert seen == written
