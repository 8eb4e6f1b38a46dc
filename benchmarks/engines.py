"""Rates of the embedded engines on this machine: `python -m benchmarks.engines [--folder DIR]`.

Closed loops; each figure is from one run of about a second, so an order of magnitude. The folder
should lie on the disk that the data will lie on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from imcore.runtime import SystemClock
from imcore.words import Origin
from services.engines.disk import RealDisk, RealFile
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.engines.registry_store import RegistryStore
from services.ports import Batch, Log, Record

PARTITIONS = 4
PAYLOAD = random.Random(1).randbytes(400)
SECONDS = 1.0


class Figure(NamedTuple):
    name: str
    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # of the whole process, per operation
    note: str = ""


def figure(name: str, took: list[float], wall_s: float, cpu_s: float, note: str = "") -> Figure:
    took.sort()
    count = len(took)
    p50, p99 = took[count // 2] * 1000, took[min(count - 1, count * 99 // 100)] * 1000
    return Figure(name, count / wall_s, p50, p99, cpu_s / count * 1e6, note)


async def closed_loop(
    name: str, concurrent: int, once: Callable[[int], Awaitable[object]], note: Callable[[], str]
) -> Figure:
    took: list[float] = []
    end = time.perf_counter() + SECONDS

    async def worker(number: int) -> None:
        while (begin := time.perf_counter()) < end:
            await once(number)
            took.append(time.perf_counter() - begin)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker(number) for number in range(concurrent)))
    return figure(name, took, time.perf_counter() - wall, time.process_time() - cpu, note())


class _Syncs:
    """Counts the fsyncs of the process's engines."""

    def __init__(self) -> None:
        self.count = 0
        real = RealFile.sync

        def counted(file: RealFile) -> None:
            self.count += 1
            real(file)

        RealFile.sync = counted  # type: ignore[method-assign,assignment]


def append(log: Log, partition: int) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(result: Sequence[Record] | Exception) -> None:
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(None)

    log.append(partition, 1, [PAYLOAD], done)
    return future


def raw_fsyncs(folder: Path) -> Figure:
    """What the disk itself does: append 500 bytes and fdatasync, one after the other."""
    file = RealDisk().open(str(folder / "raw"))
    took: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < SECONDS:
        begin = time.perf_counter()
        file.append(PAYLOAD)
        os.fdatasync(file._fd)
        took.append(time.perf_counter() - begin)
    file.close()
    return figure("disk: append + fdatasync", took, SECONDS, time.process_time() - cpu)


async def log_figures(folder: Path) -> list[Figure]:
    store = await SegmentLogStore.open(str(folder / "log"), PARTITIONS, RealDisk(), random.Random())
    log = await store.open_own(Origin("fra", 1))
    syncs, figures = _Syncs(), []
    for concurrent in (1, 16, 256):
        before, lsns = syncs.count, sum(log.end(n).lsn for n in range(PARTITIONS))

        def note(before: int = before, lsns: int = lsns) -> str:
            appended = sum(log.end(n).lsn for n in range(PARTITIONS)) - lsns
            return f"{appended / max(1, syncs.count - before):.1f} appends an fsync"

        figures.append(
            await closed_loop(
                f"log: append, {concurrent} at a time",
                concurrent,
                lambda number: append(log, number % PARTITIONS),
                note,
            )
        )
    figures.append(await copy_figure(store, log))
    figures.append(await read_figure(log))
    await store.close()
    return figures


async def copy_figure(store: SegmentLogStore, log: Log) -> Figure:
    copy = await store.open_copy(Origin("iad", 1))
    took: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    records = 0
    while time.perf_counter() - wall < SECONDS:
        page = await log.read(0, copy.end(0).lsn + 1, 64 * 1024)
        if not page:
            break
        begin = time.perf_counter()
        await copy.append_copy(page)
        took.append(time.perf_counter() - begin)
        records += len(page)
    spent = time.perf_counter() - wall
    note = f"{records / spent:,.0f} records/s, {len(took)} batches"
    return figure("log: copy a 64 KiB batch", took, spent, time.process_time() - cpu, note)


async def read_figure(log: Log) -> Figure:
    took: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    lsn, records = 1, 0
    while page := await log.read(0, lsn, 256 * 1024):
        records += len(page)
        lsn = page[-1].lsn + 1
        took.append(time.perf_counter() - wall)
    spent = time.perf_counter() - wall
    note = f"{records / spent:,.0f} records/s"
    gaps = [b - a for a, b in zip([0.0, *took], took, strict=False)]
    return figure("log: read a 256 KiB page", gaps, spent, time.process_time() - cpu, note)


async def kv_figures(folder: Path) -> list[Figure]:
    kv = await LmdbKv.open(str(folder / "kv"), RealDisk())
    rng = random.Random(1)
    epochs = [(await kv.open_partition(n))[0] for n in range(PARTITIONS)]
    figures = []
    for rows in (1, 10, 100):

        async def commit(number: int, rows: int = rows) -> None:
            partition = rng.randrange(PARTITIONS)
            prefix = partition.to_bytes(2, "big")
            batch = Batch(partition, epochs[partition], PAYLOAD[:100])
            for _ in range(rows):
                batch.puts[prefix + b"e%d" % rng.randrange(200_000)] = PAYLOAD
            await kv.commit(batch)

        figures.append(
            await closed_loop(
                f"kv: commit of {rows} rows", 1, commit, lambda: _size(folder / "kv/data.mdb")
            )
        )

    async def get(number: int) -> None:
        await kv.get(b"\0\1e%d" % rng.randrange(200_000))

    figures.append(await closed_loop("kv: get", 1, get, lambda: ""))
    begin = time.perf_counter()
    await kv.sync()
    figures.append(Figure("kv: sync", 0, (time.perf_counter() - begin) * 1000, 0, 0))
    await kv.close()
    return figures


def _size(path: Path) -> str:
    return f"file {path.stat().st_size >> 20} MiB"


async def registry_figures(folder: Path) -> list[Figure]:
    store = await RegistryStore.open(
        str(folder / "registry"), RealDisk(), SystemClock(), random.Random()
    )
    revisions = [0] * 16
    figures = []

    async def swap(number: int) -> None:
        swapped, current = await store.compare_and_swap(
            b"k/%d" % number, revisions[number], PAYLOAD
        )
        assert swapped and current is not None
        revisions[number] = current.mod_revision

    for concurrent in (1, 16):
        name = f"registry: compare-and-swap, {concurrent} at a time"
        figures.append(await closed_loop(name, concurrent, swap, lambda: ""))
    await store.close()
    return figures


def show(figures: list[Figure]) -> None:
    base = figures[0].per_s
    header = f"{'':40}{'per s':>10}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}"
    print(header)
    for item in figures:
        print(
            f"{item.name:40}{item.per_s:>10,.0f}{item.per_s / base:>8.2f}{item.p50_ms:>9.2f}"
            f"{item.p99_ms:>9.2f}{item.cpu_us:>9.0f}  {item.note}"
        )


async def run(folder: Path) -> None:
    print(f"load before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} CPUs; {len(PAYLOAD)} bytes")
    figures = [await asyncio.to_thread(raw_fsyncs, folder)]
    figures += await log_figures(folder)
    figures += await kv_figures(folder)
    figures += await registry_figures(folder)
    show(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None, help="where the data goes (default: a temporary)")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-engines-", dir=arguments.folder))
    try:
        asyncio.run(run(folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
