"""TiKV fails in every way that can be brought about here: real PD, and a TiKV-protocol mock."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from imcore.errors import ImError, OutcomeUnknown, StaleWriter, Unavailable
from imctl.engines.binaries import Program
from imctl.testing.tikv import TikvProcesses, running
from services.engines.disk import RealDisk
from services.engines.tikv.client import PACKAGE, VERSION, TikvClient, TikvSettings
from services.engines.tikv.flights import GATHER_S
from services.engines.tikv.kv import TikvKv
from services.engines.tikv.layout import Layout, inverted
from services.node.waiting import when_it_answers
from services.ports import Batch

PREFIX = "imctl/prod/fra"
DEADLINE_S = 1.0  # where one of them is away
PATIENT_S = 15.0  # where they are there, on a machine that may stand still
SETTLED_S = 30.0  # until a lock of a dead transaction is old enough, several times over
P = 1


@pytest.fixture(scope="module")
def on_disk(
    tikv_programs: tuple[Program, Program], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TikvProcesses]:
    with running(*tikv_programs, tmp_path_factory.mktemp("tikv"), on_disk=True) as processes:
        yield processes


Opener = Callable[..., Awaitable[TikvKv]]


@pytest.fixture
def deadline_s() -> float:
    return PATIENT_S


hasty = pytest.mark.parametrize("deadline_s", [DEADLINE_S])


@pytest.fixture
async def opener(
    tmp_path: Path, request: pytest.FixtureRequest, deadline_s: float
) -> AsyncIterator[Opener]:
    opened: list[TikvKv] = []

    async def open_kv(processes: TikvProcesses, node: str = "node") -> TikvKv:
        prefix = f"{PREFIX}/{request.node.name}"
        settings = TikvSettings((processes.pd.address,), prefix, deadline_s)
        begin = partial(TikvKv.open, settings, tmp_path / node, RealDisk(), [b"o"])
        kv = await when_it_answers(begin, "TiKV")
        opened.append(kv)
        return kv

    yield open_kv
    for kv in opened:
        await kv.close()


def key(name: str, partition: int = P) -> bytes:
    return partition.to_bytes(2, "big") + name.encode()


async def put(kv: TikvKv, epoch: int, number: int, rows: int = 3) -> None:
    """Batches whose rows all hold one number: a torn one would show two."""
    value = b"%d" % number
    await kv.commit(Batch(P, epoch, value, {key(f"o{n:03}"): value for n in range(rows)}))


async def whole(kv: TikvKv, rows: int = 3) -> int:
    """The number that all rows, and their shadows, hold."""
    up = await kv.scan(key("o"), key("p"), 1_000)
    down = await kv.scan(key("o"), key("p"), 1_000, reverse=True)
    assert up == down[::-1] and len(up) == rows
    (value,) = {value for _, value in up}
    return int(value)


async def settled(kv: TikvKv, rows: int = 3) -> int:
    """The client waits for a lock of a dead transaction until it is old, whatever became of it."""
    async with asyncio.timeout(SETTLED_S):
        while True:
            try:
                return await whole(kv, rows)
            except Unavailable:
                await asyncio.sleep(0.1)


async def reopened(kv: TikvKv, partition: int = P) -> tuple[int, bytes | None]:
    """As an applier does it: again and again, for a bounded time."""
    async with asyncio.timeout(SETTLED_S):
        while True:
            try:
                return await kv.open_partition(partition)
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(0.1)


# ------------------------------------------------------------------------- of the store


async def test_regions_are_split_under_reads_and_writes(
    on_disk: TikvProcesses, opener: Opener, request: pytest.FixtureRequest
) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    layout = Layout(f"{PREFIX}/{request.node.name}")
    before = on_disk.ask("GET", "/regions").count(b'"') // 2
    await put(kv, epoch, 0, rows=100)
    for number in range(1, 31):
        if number % 3 == 0:
            cut = layout.rows(P, 0) + b"o%03d" % (number * 3)
            on_disk.split(cut if number % 2 else layout.shadows(P, 0) + bytes([200 + number]))
        await put(kv, epoch, number, rows=100)
        assert await whole(kv, rows=100) == number
    assert on_disk.ask("GET", "/regions").count(b'"') // 2 >= before + 10
    keys = [key(f"o{n:03}") for n in range(100)]
    assert set(await kv.get_many(keys)) == {b"30"}


@pytest.mark.parametrize(
    "where", ["row", "first row", "shadow", "meta", "redo", "behind redo", "mark"], ids=str
)
async def test_a_batch_is_whole_though_pd_hears_late_of_half_a_region(
    on_disk: TikvProcesses, opener: Opener, request: pytest.FixtureRequest, where: str
) -> None:
    """The client leaves out what lies in the half that PD does not know, and reports success."""
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    layout = Layout(f"{PREFIX}/{request.node.name}")
    await put(kv, epoch, 0, rows=60)
    cut = {
        "row": layout.rows(P, 0) + b"o030",
        "first row": layout.rows(P, 0),
        "shadow": layout.shadows(P, 0) + b"\x80",
        "meta": layout.meta(P),
        "redo": layout.redo(P),
        "behind redo": layout.redo(P) + b"\0",
        "mark": layout.mark(P),
    }[where]
    on_disk.split(layout.shadows(P + 1, 0))  # so that the half ends with this partition
    assert await settled(kv, rows=60) == 0  # PD has heard of it
    seen: list[int] = []

    async def look() -> None:
        while True:
            seen.append(await settled(kv, rows=60))

    looking = asyncio.ensure_future(look())
    try:
        on_disk.split(cut, late_ms=600)
        for number in range(1, 4):
            await put(kv, epoch, number, rows=60)
            assert await whole(kv, rows=60) == number
    except OutcomeUnknown:  # the primary was to be left out: then the commit fails
        epoch, checkpoint = await reopened(kv)
        assert await settled(kv, rows=60) == int(checkpoint or b"")
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    assert seen == sorted(seen)
    await put(kv, epoch, 9, rows=60)
    again = await opener(on_disk)
    assert (await whole(again, rows=60), again.rolled_back) == (9, False)


@pytest.mark.parametrize("where", ["first meta", "meta", "redo", "row", "mark"])
async def test_batches_that_share_a_transaction_are_whole_each_though_it_is_torn(
    on_disk: TikvProcesses, opener: Opener, request: pytest.FixtureRequest, where: str
) -> None:
    kv = await opener(on_disk)
    partitions = (P, P + 1, P + 2)
    epochs = {p: (await kv.open_partition(p))[0] for p in partitions}

    async def put_all(number: int) -> list[BaseException | None]:
        value = b"%d" % number
        batches = [
            Batch(p, epochs[p], value, {key(f"o{n:03}", p): value for n in range(20)})
            for p in partitions
        ]
        return await asyncio.gather(*map(kv.commit, batches), return_exceptions=True)

    async def rows_of(kv: TikvKv, partition: int) -> set[bytes]:
        async with asyncio.timeout(SETTLED_S):
            while True:
                with contextlib.suppress(Unavailable):
                    found = await kv.scan(key("o", partition), key("p", partition), 1_000)
                    assert len(found) == 20
                    return {value for _, value in found}
                await asyncio.sleep(0.1)

    assert await put_all(0) == [None, None, None]
    layout = Layout(f"{PREFIX}/{request.node.name}")
    cut = {
        "first meta": layout.meta(P),
        "meta": layout.meta(P + 1),
        "redo": layout.redo(P + 1),
        "row": layout.rows(P + 1, 0) + b"o010",
        "mark": layout.mark(P + 1),
    }[where]
    on_disk.split(layout.mark(P + 3))
    assert await rows_of(kv, P) == {b"0"}  # so PD has heard of it
    on_disk.split(cut, late_ms=600)
    outcomes = await put_all(1)
    for partition, outcome in zip(partitions, outcomes, strict=True):
        assert outcome is None or isinstance(outcome, OutcomeUnknown)
        if outcome is not None:
            epochs[partition], checkpoint = await reopened(kv, partition)
            assert await rows_of(kv, partition) == {checkpoint}
        else:
            assert await rows_of(kv, partition) == {b"1"}
    assert await put_all(2) == [None, None, None]
    again = await opener(on_disk)
    assert not again.rolled_back
    for partition in partitions:
        assert await rows_of(again, partition) == {b"2"}


async def test_a_stale_applier_does_not_hold_the_other_partitions_of_its_transaction_up(
    on_disk: TikvProcesses, opener: Opener
) -> None:
    kv, other = await opener(on_disk, "one"), await opener(on_disk, "two")
    epochs = {p: (await kv.open_partition(p))[0] for p in (P, P + 1)}
    await other.open_partition(P)
    batches = [Batch(p, epochs[p], b"1", {key("o", p): b"1"}) for p in epochs]
    stale, fine = await asyncio.gather(*map(kv.commit, batches), return_exceptions=True)
    assert isinstance(stale, StaleWriter) and fine is None
    assert await kv.get_many([key("o"), key("o", P + 1)]) == [None, b"1"]


@pytest.mark.parametrize("where", ["row", "redo", "mark"])
async def test_a_batch_that_was_torn_before_a_crash_is_made_whole_or_known(
    on_disk: TikvProcesses,
    opener: Opener,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    await put(kv, epoch, 0, rows=60)
    layout = Layout(f"{PREFIX}/{request.node.name}")
    first, end = {
        "row": (layout.rows(P, 0) + b"o030", layout.rows(P, 0) + b"o040"),
        "redo": (layout.redo(P), layout.redo(P) + b"\0"),
        "mark": (layout.mark(P), layout.mark(P) + b"\0"),
    }[where]
    on_disk.split(end)
    await put(kv, epoch, 0, rows=60)  # so PD has heard of it
    crashed = asyncio.Event()

    async def crash(*_: object) -> set[int]:
        crashed.set()
        await asyncio.sleep(60)
        return set()

    with monkeypatch.context() as patch:
        patch.setattr(kv, "_read_back", crash)
        on_disk.split(first, late_ms=600)
        writing = asyncio.ensure_future(put(kv, epoch, 1, rows=60))
        await asyncio.wait_for(crashed.wait(), SETTLED_S)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    again = await opener(on_disk)
    epoch, checkpoint = await again.open_partition(P)
    if where != "redo":
        assert (await whole(again, rows=60), checkpoint, again.rolled_back) == (1, b"1", False)
    else:  # nobody can tell what else was left out: it is folded again from the logs
        assert (await again.scan(key("o"), key("p"), 9), checkpoint) == ([], None)
        assert again.rolled_back
    await put(again, epoch, 2, rows=60)
    assert await whole(again, rows=60) == 2
    third = await opener(on_disk)
    assert (await whole(third, rows=60), third.rolled_back) == (2, False)


@pytest.mark.parametrize("left_out", ["meta", "redo meta", "redo meta row", "redo meta row mark"])
async def test_a_batch_whose_beginning_was_left_out_is_known_after_a_crash(
    on_disk: TikvProcesses, opener: Opener, request: pytest.FixtureRequest, left_out: str
) -> None:
    """As a client's own transaction forges it: which keys the real one leaves out is its affair."""
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    layout = Layout(f"{PREFIX}/{request.node.name}")
    named = {
        "redo": layout.redo(P),
        "meta": layout.meta(P),
        "row": layout.rows(P, 0) + b"o000",
        "mark": layout.mark(P),
    }
    keys = [named[name] for name in left_out.split()]
    if "mark" in left_out:  # all of it
        keys += [layout.rows(P, 0) + b"o%03d" % n for n in range(3)]
        keys += [layout.shadows(P, 0) + inverted(b"o%03d" % n) for n in range(3)]
    client = TikvClient(TikvSettings((on_disk.pd.address,), PREFIX))
    await put(kv, epoch, 1)
    before = await client.read(lambda at: at.get_many(keys))
    await put(kv, epoch, 2)
    await client.write(lambda transaction: transaction.put(before.items()))
    await client.close()
    again = await opener(on_disk)
    epoch, checkpoint = await again.open_partition(P)
    if "mark" in left_out:
        assert (await whole(again), checkpoint, again.rolled_back) == (1, b"1", False)
    else:
        assert (await again.scan(key("o"), key("p"), 9), checkpoint) == ([], None)
        assert again.rolled_back
    await put(again, epoch, 3)
    assert await whole(again) == 3


async def test_a_snapshot_is_put_in_place_whole_though_pd_hears_late_of_half_a_region(
    on_disk: TikvProcesses, opener: Opener, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kv = await opener(on_disk)
    layout = Layout(f"{PREFIX}/{request.node.name}")
    for partition in range(4):
        epoch, _ = await kv.open_partition(partition)
        rows = {key(f"o{n:03}", partition): b"kept" for n in range(50)}
        await kv.commit(Batch(partition, epoch, b"c", rows))
    await kv.snapshot(tmp_path / "snapshot")
    on_disk.split(layout.shadows(4, 0))
    on_disk.split(layout.rows(P, 1) + b"o020", late_ms=400)  # where the rows are staged
    epoch, _ = await kv.open_partition(P)
    await kv.load_partition(tmp_path / "snapshot", P, epoch, b"d")
    assert len(await kv.scan(key("o"), key("p"), 99)) == 50
    on_disk.split(layout.meta(2), late_ms=400)
    await kv.restore(tmp_path / "snapshot")
    for partition in range(4):
        assert (await kv.open_partition(partition))[1] == b"c"
        bounds = key("o", partition), key("p", partition)
        found = await kv.scan(*bounds, 99)
        assert found == [(key(f"o{n:03}", partition), b"kept") for n in range(50)]
        assert found == (await kv.scan(*bounds, 99, reverse=True))[::-1]


async def test_a_batch_that_could_not_be_read_back_is_refused_before_it_is_written(
    on_disk: TikvProcesses, opener: Opener
) -> None:
    """The client takes 4 MiB in one answer, and a batch stands in one row once more."""
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    rows = {key(f"b{n}"): bytes([n]) * (1 << 20) for n in range(1, 5)}
    with pytest.raises(Unavailable, match=r"a batch of partition 1 has \d+ bytes in 5 rows"):
        await kv.commit(Batch(P, epoch, b"too large", rows))
    assert await kv.get(key("b1")) is None
    large = dict(list(rows.items())[:2])
    await kv.commit(Batch(P, epoch, b"large", large))  # twice what is said to be the most
    again = await opener(on_disk)  # which reads the last batch back
    assert (await again.open_partition(P))[1] == b"large"
    assert await again.get_many(list(large)) == list(large.values())


@hasty
async def test_a_paused_store_holds_nothing_up_for_longer_than_the_deadline(
    on_disk: TikvProcesses, opener: Opener
) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    await put(kv, epoch, 1)
    on_disk.pause("store")
    try:
        began = time.monotonic()
        calls = [kv.get(key("o000")), kv.scan(key("o"), key("p"), 10), put(kv, epoch, 2)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < DEADLINE_S + 1
        assert [type(result) for result in results] == [Unavailable] * 3
    finally:
        on_disk.resume("store")
    epoch, checkpoint = await reopened(kv)
    assert checkpoint == b"1"
    await put(kv, epoch, 3)
    assert await whole(kv) == 3


@hasty
async def test_a_store_that_comes_back_with_its_rows_is_gone_on_with(
    on_disk: TikvProcesses, opener: Opener
) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    await put(kv, epoch, 1)
    on_disk.kill("store")
    with pytest.raises(ImError):
        await put(kv, epoch, 2)
    await asyncio.to_thread(on_disk.start_store)
    epoch, checkpoint = await reopened(kv)
    assert checkpoint == b"1"
    await put(kv, epoch, 3)
    assert await whole(kv) == 3
    assert not kv.rolled_back


@hasty
async def test_a_store_that_lost_everything_is_another_one(
    tikv_programs: tuple[Program, Program], opener: Opener, tmp_path: Path
) -> None:
    with running(*tikv_programs, tmp_path / "tikv") as processes:  # rows in memory
        kv = await opener(processes)
        epoch, _ = await kv.open_partition(P)
        await put(kv, epoch, 1)
        last = await kv._redo_of(P, kv._seen[P], kv._client.deadline())
        processes.kill("store")
        await asyncio.to_thread(processes.start_store)
        # Never an answer that says "there is nothing", and never a write into the new one.
        async with asyncio.timeout(SETTLED_S):
            while True:
                with pytest.raises((Unavailable, StaleWriter)) as read:
                    await kv.get(key("o000"))
                if "wiped, replaced or restored" in str(read.value):
                    break
        with pytest.raises(Unavailable, match="wiped, replaced or restored"):
            await kv.scan(key("o"), key("p"), 10)
        # Nor is a batch that was to be read back written into it: nobody would fold the rest again.
        with pytest.raises(StaleWriter, match="wiped, replaced or restored"):
            await kv._made_whole(P, kv._seen[P], last, kv._client.deadline())
        for write in (put(kv, epoch, 2), kv.clear_partition(P, epoch, b""), kv.open_partition(P)):
            with pytest.raises(StaleWriter, match="wiped, replaced or restored"):
                await write
        again = await opener(processes)
        assert again.rolled_back
        untold = await opener(processes)  # nobody has worked with the state yet
        assert untold.rolled_back
        assert (await untold.open_partition(P))[1] is None
        assert not (await opener(processes)).rolled_back


async def test_a_restored_backup_is_an_earlier_life(
    tikv_programs: tuple[Program, Program], opener: Opener, tmp_path: Path
) -> None:
    def copy(source: str, target: str) -> None:
        for name in ("pd", "store"):
            subprocess.run(
                ["cp", "-r", tmp_path / source / name, tmp_path / target], check=True, timeout=30
            )

    with running(*tikv_programs, tmp_path / "tikv", on_disk=True) as processes:
        kv = await opener(processes)
        await kv.open_partition(P)
        processes.stop()
        (tmp_path / "backup").mkdir()
        copy("tikv", "backup")
        await asyncio.to_thread(processes.start)
        later = await opener(processes)
        assert not later.rolled_back
        epoch, _ = await reopened(later)
        await put(later, epoch, 1)
        processes.stop()
        processes.wipe()
        copy("backup", "tikv")
        await asyncio.to_thread(processes.start)
        again = await opener(processes)
        assert again.rolled_back


# ----------------------------------------------------------------------------- of PD


@hasty
@pytest.mark.parametrize("fault", ["paused", "restarted"])
async def test_pd_is_away_for_a_while(on_disk: TikvProcesses, opener: Opener, fault: str) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    await put(kv, epoch, 1)
    if fault == "paused":
        on_disk.pause("pd")
    else:
        on_disk.kill("pd")
    try:
        with pytest.raises(Unavailable):
            for _ in range(20):  # timestamps may have been on their way
                await kv.get(key("o000"))
                await asyncio.sleep(0.05)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await put(kv, epoch, 2)
        assert time.monotonic() - began < DEADLINE_S + 1
    finally:
        if fault == "paused":
            on_disk.resume("pd")
        else:
            await asyncio.to_thread(on_disk.start_pd)
    epoch, checkpoint = await reopened(kv)
    assert checkpoint == b"1"
    await put(kv, epoch, 3)
    assert await whole(kv) == 3


# -------------------------------------------------------------------- unknown outcomes


@hasty
@pytest.mark.parametrize(("kind", "lasting"), [("lost", b"1"), ("mute", b"2")])
async def test_a_lost_answer_to_a_commit_is_settled_by_opening_the_partition(
    on_disk: TikvProcesses, opener: Opener, kind: str, lasting: bytes
) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    await put(kv, epoch, 1)
    assert await whole(kv) == 1  # so its secondary keys are committed: no call of it is hit
    on_disk.fail("KvCommit", kind)
    with pytest.raises(OutcomeUnknown) as unknown:
        await put(kv, epoch, 2)
    with pytest.raises(OutcomeUnknown, match="must be opened again"):
        await put(kv, epoch, 3)
    began = time.monotonic()
    epoch, checkpoint = await reopened(kv)
    # Even while the error is kept: the dead transaction must not go on renewing its locks.
    assert unknown.value and time.monotonic() - began < 6.0
    assert checkpoint == lasting
    assert await settled(kv) == int(lasting)
    await put(kv, epoch, 4)
    assert await whole(kv) == 4


@hasty
async def test_a_commit_that_arrives_late_changes_nothing_any_more(
    on_disk: TikvProcesses, opener: Opener
) -> None:
    """Its first phase was dropped by the caller's deadline, and done after all."""
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    await put(kv, epoch, 1)
    on_disk.fail("KvPrewrite", "late", delay_ms=2_500)
    with pytest.raises(OutcomeUnknown):
        await put(kv, epoch, 2)
    epoch, checkpoint = await reopened(kv)
    assert checkpoint == b"1"
    await put(kv, epoch, 3)
    await asyncio.sleep(2.5)
    assert await settled(kv) == 3
    assert (await reopened(kv))[1] == b"3"


async def test_cancelled_at_any_moment_a_batch_is_whole_or_absent(
    on_disk: TikvProcesses, opener: Opener
) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    await put(kv, epoch, 0, rows=50)
    last, cancelled = 0, 0
    for number in range(1, 21):
        write = asyncio.ensure_future(put(kv, epoch, number, rows=50))
        await asyncio.sleep(GATHER_S + 0.001 * number)
        write.cancel()
        (outcome,) = await asyncio.gather(write, return_exceptions=True)
        if outcome is None:
            last = number
            continue
        cancelled += 1
        epoch, checkpoint = await reopened(kv)
        assert checkpoint in (b"%d" % last, b"%d" % number)
        last = int(checkpoint or b"")
        assert await settled(kv, rows=50) == last
    assert cancelled > 3


async def test_two_appliers_storm_and_exactly_one_wins(
    on_disk: TikvProcesses, opener: Opener
) -> None:
    first, second = await opener(on_disk, "one"), await opener(on_disk, "two")
    acked: list[int] = []

    async def applier(kv: TikvKv, offset: int) -> None:
        for round_ in range(8):
            before = max(acked, default=0)  # while it opens, the other one may take over and go on
            epoch, checkpoint = await reopened(kv)
            number = int(checkpoint or b"0")
            assert number >= before, "an acked batch is gone"
            for _ in range(5 + (round_ + offset) % 3):
                number += 1
                try:
                    await put(kv, epoch, number)
                except (StaleWriter, Unavailable, OutcomeUnknown):
                    break
                assert number > max(acked, default=0), "two appliers have acked the same batch"
                acked.append(number)

    async with asyncio.timeout(60):
        await asyncio.gather(applier(first, 0), applier(second, 1))
    assert await settled(first) == await settled(second) >= max(acked)
    (old, _), (new, _) = await reopened(first), await reopened(second)
    writes = [put(kv, epoch, 1_000 + epoch) for kv, epoch in ((first, old), (second, new))]
    lost, won = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(lost, StaleWriter) and won is None
    assert await settled(first) == 1_000 + new


# ---------------------------------------------------------------------- what is left over


async def test_rows_that_were_cleared_go_in_the_background_and_after_a_restart(
    on_disk: TikvProcesses, opener: Opener, request: pytest.FixtureRequest
) -> None:
    kv = await opener(on_disk)
    epoch, _ = await kv.open_partition(P)
    for number in range(3):
        rows = {key(f"o{number}{n:04}"): b"x" for n in range(300)}
        await kv.commit(Batch(P, epoch, b"", rows))
    await kv.clear_partition(P, epoch, b"")
    assert await kv.scan(key(""), key("", P + 1), 10) == []
    await kv.close()  # long before the rows are gone
    settings = TikvSettings((on_disk.pd.address,), f"{PREFIX}/{request.node.name}")
    client, layout = TikvClient(settings), Layout(settings.prefix)

    async def left() -> int:
        return sum(
            [
                len(await client.read(lambda at, r=bounds: at.scan(*r, 10_000)))  # type: ignore[misc]
                for bounds in layout.garbage(P, 0, 1 << 40)
            ]
        )

    try:
        assert await left() > 0
        again = await opener(on_disk)
        epoch, _ = await again.open_partition(P)
        await put(again, epoch, 5)
        async with asyncio.timeout(30):
            await again.garbage.idle()
        assert await left() == 6  # three rows and their shadows
        assert await whole(again) == 5
        await again.garbage.collect_once(kept_s=0.0)
        assert await whole(again) == 5
    finally:
        await client.close()


# ----------------------------------------------------------------------------- at exit

_PROGRAM = f"""
import asyncio, sys
from pathlib import Path
from services.engines.disk import RealDisk
from services.engines.tikv.client import TikvSettings
from services.engines.tikv.kv import TikvKv
from services.ports import Batch

async def main():
    kv = await TikvKv.open(TikvSettings((sys.argv[1],), "exit"), Path(sys.argv[2]), RealDisk())
    epoch, _ = await kv.open_partition({P})
    rows = {{b"\\0\\1%d" % n: b"x" for n in range(200)}}
    pending = [asyncio.ensure_future(kv.get(b"\\0\\1%d" % n)) for n in range(50)]
    await kv.commit(Batch({P}, epoch, b"c", rows))
    late = asyncio.ensure_future(kv.commit(Batch({P}, epoch, b"d", rows)))
    await asyncio.sleep(0.005)
    late.cancel()
    for one in pending[::2]:
        one.cancel()
    await kv.close()
    await asyncio.gather(late, *pending, return_exceptions=True)

asyncio.run(main())
print("ended")
"""


async def test_the_interpreter_ends_cleanly_with_calls_under_way(
    tikv_processes: TikvProcesses, tmp_path: Path
) -> None:
    for run in range(10):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _PROGRAM, tikv_processes.pd.address, str(tmp_path / "node")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (run, done.returncode, done.stdout, done.stderr) == (run, 0, "ended\n", "")


def test_the_pinned_client_is_the_one_whose_errors_are_known() -> None:
    root = Path(__file__).parents[2]
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        assert f"{PACKAGE}=={VERSION}" in (root / name).read_text(), name
