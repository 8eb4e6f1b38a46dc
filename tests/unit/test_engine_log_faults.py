"""The log while its disk is full, fails or is slow; and when its process is killed."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from imcore.errors import Damaged, DiskFull, OutcomeUnknown, Unavailable
from imcore.words import Origin
from services.engines.disk import DiskFaults, RealDisk, RealFile
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.engines.segment_log import SegmentLog
from services.ports import Batch, Record

FRA = Origin("fra", 1)


async def open_store(folder: Path, faults: DiskFaults | None = None) -> SegmentLogStore:
    return await SegmentLogStore.open(str(folder), 2, RealDisk(faults), random.Random())


def append(log: SegmentLog, payload: bytes, partition: int = 0) -> asyncio.Future[list[Record]]:
    future: asyncio.Future[list[Record]] = asyncio.get_running_loop().create_future()

    def done(result: Sequence[Record] | Exception) -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(list(result))

    log.append(partition, 1, [payload], done)
    return future


async def test_a_full_disk_fails_everything_that_was_not_acked_until_it_is_reopened(
    tmp_path: Path,
) -> None:
    faults = DiskFaults()
    store = await open_store(tmp_path, faults)
    log = await store.open_own(FRA)
    (kept,) = await append(log, b"kept")
    faults.full = True
    outcomes = await asyncio.gather(
        *(append(log, b"lost %d" % n) for n in range(5)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [DiskFull] * 5
    faults.full = False
    with pytest.raises(DiskFull):  # room again, but what was given out above is not there
        await append(log, b"still failed")
    assert log.end(0) == (1, kept.chain, 1)
    assert (await log.reopen(0)).lsn == 1
    (more,) = await append(log, b"more")
    assert more.lsn == 2
    assert await log.read(0, 1, 1000) == [kept, more]
    await store.close()
    store = await open_store(tmp_path)
    assert await (await store.open_own(FRA)).read(0, 1, 1000) == [kept, more]
    await store.close()


async def test_a_copy_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    faults = DiskFaults()
    store = await open_store(tmp_path, faults)
    log = await store.open_own(FRA)
    records = [(await append(log, b"%d" % n))[0] for n in range(3)]
    copy = await store.open_copy(Origin("iad", 1))
    await copy.append_copy(records[:1])
    faults.full = True
    for _ in range(2):
        with pytest.raises(DiskFull):
            await copy.append_copy(records)
    assert copy.end(0).lsn == 1
    faults.full = False
    await copy.append_copy(records)
    assert await copy.read(0, 1, 1000) == records
    await store.close()


async def test_a_failed_fsync_is_an_unknown_outcome_and_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path)
    log = await store.open_own(FRA)
    (kept,) = await append(log, b"kept")
    real = os.fdatasync
    failures = ["once"]

    def failing(fd: int) -> None:
        if "/fra.1/0/" in os.readlink(f"/proc/self/fd/{fd}") and failures:
            raise OSError(5, failures.pop())
        real(fd)

    monkeypatch.setattr(os, "fdatasync", failing)
    outcomes = await asyncio.gather(
        append(log, b"a"), append(log, b"other", partition=1), return_exceptions=True
    )
    assert isinstance(outcomes[0], OutcomeUnknown)
    assert not isinstance(outcomes[1], BaseException), "another partition's fsync was fine"
    with pytest.raises(OutcomeUnknown):
        await append(log, b"b")
    assert (await log.reopen(0)).lsn == 1
    (more,) = await append(log, b"more")
    await store.close()
    store = await open_store(tmp_path)
    assert await (await store.open_own(FRA)).read(0, 1, 1000) == [kept, more]
    await store.close()


async def test_nothing_is_told_before_the_fsync_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path)
    log = await store.open_own(FRA)
    loop, syncing, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    real = RealFile.sync

    def held(file: RealFile) -> None:
        loop.call_soon_threadsafe(syncing.set)
        go_on.wait(5)
        real(file)

    monkeypatch.setattr(RealFile, "sync", held)
    future = append(log, b"a")
    await syncing.wait()
    await asyncio.sleep(0)
    assert not future.done()
    assert log.end(0).lsn == 0 and await log.read(0, 1, 100) == []
    go_on.set()
    (record,) = await future
    assert log.end(0).lsn == record.lsn == 1
    await store.close()


async def test_a_slow_fsync_gathers_what_arrives_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = DiskFaults()
    store = await open_store(tmp_path, faults)
    log = await store.open_own(FRA)
    syncs = 0
    real = RealFile.sync

    def counted(file: RealFile) -> None:
        nonlocal syncs
        syncs += 1
        real(file)

    monkeypatch.setattr(RealFile, "sync", counted)
    faults.fsync_delay_ms = 30
    futures = []
    for n in range(40):  # 40 turns of the loop
        futures.append(append(log, b"%d" % n))
        await asyncio.sleep(0)
    records = [(await future)[0] for future in futures]
    assert [record.lsn for record in records] == list(range(1, 41))
    assert syncs <= 4
    await store.close()


async def test_a_caller_that_raises_harms_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await open_store(tmp_path)
    log = await store.open_own(FRA)

    def broken(result: object) -> None:
        raise RuntimeError("a mistake")

    log.subscribe(lambda: broken(None))
    log.append(0, 1, [b"a"], broken)
    (record,) = await append(log, b"b")
    assert record.lsn == 2
    assert "a callback of the log failed" in caplog.text
    await store.close()


async def test_whoever_follows_the_log_runs_before_what_the_answers_put_off(tmp_path: Path) -> None:
    """An applier, then the gateway's flush: an ack goes out with the push of its message."""
    store = await open_store(tmp_path)
    log = await store.open_own(FRA)
    loop, grown, order = asyncio.get_running_loop(), asyncio.Event(), []

    async def follow() -> None:
        await grown.wait()
        order.append("follower")

    following = asyncio.create_task(follow())
    flushed = loop.create_future()

    def flush() -> None:
        order.append("flush")
        flushed.set_result(None)

    def answered(result: Sequence[Record] | Exception) -> None:
        order.append("answer")
        loop.call_soon(flush)

    await asyncio.sleep(0)
    log.subscribe(grown.set)
    log.append(0, 1, [b"a"], answered)
    await asyncio.gather(following, flushed)
    assert order == ["answer", "follower", "flush"]
    await store.close()


async def test_closing_writes_what_was_taken_and_takes_nothing_more(tmp_path: Path) -> None:
    store = await open_store(tmp_path)
    log = await store.open_own(FRA)
    taken = [append(log, b"%d" % n) for n in range(10)]
    await store.close()
    assert [(await future)[0].lsn for future in taken] == list(range(1, 11))
    with pytest.raises(Unavailable):
        await append(log, b"late")
    with pytest.raises(Unavailable):
        await store.open_copy(Origin("iad", 1))


@pytest.fixture
def small_disk(tmp_path: Path, mount_tmpfs: Callable[[Path, str], None]) -> Path:
    """A real file system of 1 MiB."""
    folder = tmp_path / "small"
    mount_tmpfs(folder, "1m")
    return folder


async def test_a_really_full_disk(small_disk: Path) -> None:
    store = await open_store(small_disk / "log")
    log = await store.open_own(FRA)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(600 * 1024))
    acked: list[Record] = []
    with pytest.raises(DiskFull):
        while True:
            acked += await append(log, bytes(30_000))
    assert acked and log.end(0).lsn == acked[-1].lsn
    assert (await log.reopen(0)).lsn == acked[-1].lsn
    with pytest.raises(DiskFull):  # still full for one of these
        for _ in range(3):
            acked += await append(log, bytes(30_000))
    filler.unlink()
    await log.reopen(0)
    acked += await append(log, bytes(30_000))
    await store.close()
    store = await open_store(small_disk / "log")
    assert store.clean
    log = await store.open_own(FRA)
    assert log.end(0).lsn == len(acked)
    assert await log.read(0, 1, 1 << 22) == acked
    await store.close()


async def test_a_really_full_disk_under_the_kv(small_disk: Path) -> None:
    kv = await LmdbKv.open(str(small_disk / "kv"), RealDisk())
    epoch, _ = await kv.open_partition(1)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(300 * 1024))
    committed = 0
    with pytest.raises(DiskFull):
        while True:
            rows = {b"\0\1%d" % (committed * 10 + n): bytes(3000) for n in range(10)}
            await kv.commit(Batch(1, epoch, b"%d" % committed, rows))
            committed += 1
    assert committed
    assert len(await kv.scan(b"\0\1", b"\0\2", 10_000)) == committed * 10
    filler.unlink()
    await kv.commit(Batch(1, epoch, b"more", {b"\0\1more": b""}))
    committed_rows = committed * 10 + 1
    await kv.close()
    again = await LmdbKv.open(str(small_disk / "kv"), RealDisk())
    assert len(await again.scan(b"\0\1", b"\0\2", 10_000)) == committed_rows
    await again.close()


_WRITER = """
import asyncio, random, sys
from imcore.words import Origin
from services.engines.disk import RealDisk
from services.engines.log_store import SegmentLogStore

async def main(folder):
    store = await SegmentLogStore.open(folder, 2, RealDisk(), random.Random(), 20_000)
    log = await store.open_own(Origin("fra", 1))
    def done(result):
        for record in result:
            sys.stdout.write(f"{record.partition} {record.lsn} {record.chain.hex()}\\n")
        sys.stdout.flush()
    while True:
        for partition in (0, 1):
            log.append(partition, 1, [random.randbytes(random.randrange(300))], done)
        await asyncio.sleep(0)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("acks", [50, 700, 3000])
async def test_everything_acked_before_a_kill_is_there_after_it(tmp_path: Path, acks: int) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(tmp_path / "log"), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    lines = [await process.stdout.readline() for _ in range(acks)]
    with pytest.raises(Unavailable, match="in use by another process"):
        await open_store(tmp_path / "log")
    process.send_signal(signal.SIGKILL)
    lines += [line async for line in process.stdout if line.endswith(b"\n")]
    await process.wait()
    store = await open_store(tmp_path / "log")
    assert store.clean
    log = await store.open_own(FRA)
    chains: dict[tuple[int, int], str] = {}
    for partition in (0, 1):
        lsn = 1
        while page := await log.read(partition, lsn, 1 << 20):
            chains.update({(partition, r.lsn): r.chain.hex() for r in page})
            lsn = page[-1].lsn + 1
    for line in lines:
        partition_text, lsn_text, chain = line.decode().split()
        assert chains[int(partition_text), int(lsn_text)] == chain
    await store.close()


class ShortOfFiles(RealDisk):
    """While it is ``short`` no segment can be opened."""

    short = False

    def open(self, path: str) -> RealFile:
        if self.short and path.endswith(".seg"):
            raise OutcomeUnknown(f"cannot open {path}: Too many open files")
        return super().open(path)


async def test_a_new_segment_that_cannot_be_opened_costs_its_append_and_nothing_else(
    tmp_path: Path,
) -> None:
    disk = ShortOfFiles()
    store = await SegmentLogStore.open(str(tmp_path), 2, disk, random.Random(), segment_bytes=200)
    log = await store.open_own(FRA)
    await append(log, b"x" * 300)  # the next one rolls
    for _ in range(2):
        disk.short = True
        with pytest.raises(OutcomeUnknown):
            await append(log, b"lost")
        disk.short = False
        assert (await log.reopen(0)).lsn == 1
    (kept,) = await append(log, b"kept")
    assert [record.lsn for record in await log.read(0, 2, 100)] == [kept.lsn] == [2]
    await store.close()
    store = await open_store(tmp_path)
    assert store.clean and not store.damage
    log = await store.open_own(FRA)
    assert [len(record.payload) for n in (1, 2) for record in await log.read(0, n, 1)] == [300, 4]
    await store.close()


class Unreadable(RealDisk):
    """While ``problem`` is set nothing can be read."""

    problem = 0

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        if self.problem:
            raise OSError(self.problem, os.strerror(self.problem), path)
        return super().read(path, offset, size)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [(errno.EMFILE, Unavailable), (errno.ENFILE, Unavailable), (errno.EIO, Damaged)],
)
async def test_a_log_is_not_damaged_because_no_file_descriptor_is_left(
    tmp_path: Path, problem: int, expected: type[Exception]
) -> None:
    store = await open_store(tmp_path)
    await append(await store.open_own(FRA), b"kept")
    await store.close()
    disk = Unreadable()
    store = await SegmentLogStore.open(str(tmp_path), 2, disk, random.Random())
    log = await store.open_own(FRA)
    disk.problem = problem
    with pytest.raises(expected, match=os.strerror(problem)):
        await log.read(0, 1, 100)
    disk.problem = 0
    assert [record.payload for record in await log.read(0, 1, 100)] == [b"kept"]
    await store.close()


def test_a_disk_that_does_not_read_names_the_file() -> None:
    path = "/proc/self/mem"  # nothing is at its start, and the kernel says so as a bad disk does
    with pytest.raises(OSError, match="Input/output error") as raised:
        RealDisk().read(path, 0, 10)
    assert raised.value.filename == path
