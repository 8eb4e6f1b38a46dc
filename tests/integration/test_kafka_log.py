"""The log on a real Kafka that is killed, paused, filled, or written by somebody else as well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.admin import AlterConfigsRequest
from aiokafka.protocol.metadata import MetadataRequest

from imcore import pki
from imcore.errors import Damaged, NotTrusted, OutcomeUnknown, StaleWriter, Unavailable
from imcore.runtime import SystemClock
from imcore.words import Origin
from imctl.engines.binaries import Program
from imctl.engines.kafka import principal
from imctl.target.places import free_ports
from imctl.testing.cli import alone
from imctl.testing.kafka import KafkaProcess, running
from imctl.testing.lab import REGION
from services.engines.kafka import admin, log_store
from services.engines.kafka import cluster as kafka_cluster
from services.engines.kafka.acls import allow, of_mirrors
from services.engines.kafka.batches import Fetched
from services.engines.kafka.cluster import At, Cluster, NoTopic, dial
from services.engines.kafka.log_store import KafkaLogStore
from services.engines.kafka.meta import Meta
from services.engines.kafka.mirror_lag import MirrorLag
from services.engines.kafka.settings import (
    KafkaSettings,
    meta_topic,
    mirrored_topic,
    own_topic,
    relay_topic,
)
from services.engines.kafka.tail import MISSING_S, Tail
from services.engines.kafka.writer import Writer
from services.engines.records import EMPTY_END, pack, record_after
from services.ports import Log, LogEnd, Record
from tests.integration.kafkalogs import FRA, check, read_all, sequencer, store_of, until

SIN = Origin("sin", 1)
PARTITIONS = 2
DEADLINE_S = 1.5  # where the broker is away
PATIENT_S = 15.0  # where it is there, on a machine that may stand still


@pytest.fixture(scope="module")
def kafka(
    kafka_program: Program, pki_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaProcess]:
    """Ours, to be ill-treated."""
    with running(kafka_program, tmp_path_factory.mktemp("kafka"), pki_dir) as process:
        yield process


@pytest.fixture
def deadline_s() -> float:
    return PATIENT_S


hasty = pytest.mark.parametrize("deadline_s", [DEADLINE_S])


@pytest.fixture
def settings(kafka: KafkaProcess, deadline_s: float) -> KafkaSettings:
    return kafka.settings(f"faults-{secrets.token_hex(4)}", deadline_s=deadline_s)


Open = Callable[..., Awaitable[KafkaLogStore]]


@pytest.fixture
async def open_store(settings: KafkaSettings) -> AsyncIterator[Open]:
    """``await open_store()``: one more process of fra, so to say."""
    async with contextlib.AsyncExitStack() as stack:

        async def opener(outside: bool = False) -> KafkaLogStore:
            store = await store_of(
                settings, "fra", PARTITIONS, random.Random(), outside, step_bytes=2_000
            )
            stack.push_async_callback(store.close)
            return store

        yield opener


class Raw:
    """Writes packed records into any topic, as somebody else would."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.cluster = Cluster(settings, "fra")

    async def write(self, topic: str, *records: Record) -> int:
        writer = Writer(self.cluster, topic)
        offset = await writer.write(records[0].partition, [pack(record) for record in records])
        await writer.close()
        return offset


@pytest.fixture
async def raw(settings: KafkaSettings) -> AsyncIterator[Raw]:
    raw = Raw(settings)
    yield raw
    await raw.cluster.close()


def history(count: int, end: LogEnd = EMPTY_END, epoch: int = 1, what: str = "x") -> list[Record]:
    records = []
    for number in range(count):
        record = record_after(end, 0, epoch, b"%s %d" % (what.encode(), number))
        records.append(record)
        end = LogEnd(record.lsn, record.chain, epoch)
    return records


def end_of(records: Sequence[Record]) -> LogEnd:
    return LogEnd(records[-1].lsn, records[-1].chain, records[-1].epoch)


# --------------------------------------------------------------------- the broker has faults


@hasty
@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_acked_records_survive_a_broker_that_is_away(
    kafka: KafkaProcess, open_store: Open, fault: str
) -> None:
    store = await open_store()
    writer = await sequencer(store)
    stop = asyncio.Event()
    writing = asyncio.ensure_future(writer.write_on(stop))
    for _ in range(2):
        count = len(writer.acked)
        await until(lambda count=count: len(writer.acked) > count + 200)  # type: ignore[misc]
        if fault == "kill":
            kafka.kill()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(kafka.start)
        else:
            kafka.pause()
            await asyncio.sleep(DEADLINE_S + 1)
            kafka.resume()
    count = len(writer.acked)
    await until(lambda: len(writer.acked) > count + 200)
    stop.set()
    assert await writing >= 2
    records = await check(await open_store(), writer)
    assert len(records) >= len(writer.acked) > 600


@hasty
async def test_a_call_to_a_paused_broker_ends_at_its_deadline(
    kafka: KafkaProcess, open_store: Open
) -> None:
    store = await open_store()
    writer = await sequencer(store)
    copy = await store.open_copy(SIN)
    await copy.append_copy(history(3))
    loop = asyncio.get_running_loop()
    kafka.pause()
    try:
        begun = loop.time()
        with pytest.raises(OutcomeUnknown, match="fra's Kafka at"):
            await writer.put(b"into the dark")
        assert loop.time() - begun < DEADLINE_S + 1
        with pytest.raises(OutcomeUnknown):  # until reopen
            await writer.put(b"behind it")
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await copy.append_copy(history(1, end_of(history(3))))
        with pytest.raises(Unavailable):
            await writer.log.reopen(0)
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await store.confirm_boot()
    finally:
        kafka.resume()
    await writer.take_over()
    await writer.put(b"light")
    await store.confirm_boot()
    await copy.append_copy(history(5))
    await check(await open_store(), writer)


async def test_a_full_disk_fails_appends_and_says_so(
    kafka_program: Program,
    pki_dir: Path,
    tmp_path: Path,
    mount_tmpfs: Callable[[Path, str], None],
) -> None:
    mount_tmpfs(tmp_path / "small", "64m")
    data, filler = tmp_path / "small" / "kafka", tmp_path / "small" / "filler"
    filler.write_bytes(bytes(40 << 20))
    with running(kafka_program, tmp_path / "rig", pki_dir, data) as kafka:
        settings = kafka.settings("full", deadline_s=DEADLINE_S)
        store = await KafkaLogStore.open(settings, "fra", PARTITIONS, random.Random(1))
        writer = await sequencer(store)
        payload = random.randbytes(300_000)
        with pytest.raises((OutcomeUnknown, Unavailable)) as failed:
            for _ in range(400):
                await writer.put(payload)
        assert "its disk fails" in str(failed.value)
        await until(lambda: not kafka.alive)  # it stops by itself
        filler.unlink()
        await asyncio.to_thread(kafka.start)
        await writer.take_over()
        await writer.put(b"there is room again")
        again = await store_of(settings, "fra", PARTITIONS, random.Random())
        await check(again, writer)
        for opened in (store, again):
            await opened.close()


# --------------------------------------------------------------------------------- fencing


async def test_two_sequencers_fence_each_other(open_store: Open) -> None:
    old = await sequencer(await open_store(), "old")
    await old.put(b"1", b"2")
    new = await sequencer(await open_store(), "new")
    with pytest.raises(OutcomeUnknown, match="somebody else"):
        await old.put(b"of a paused one that resumes")
    await new.take_over()  # it met the gap that the old one left
    await new.put(b"3")
    await old.take_over()
    await old.put(b"4")
    with pytest.raises(OutcomeUnknown):
        await new.put(b"5")
    await new.take_over()
    await new.put(b"6")
    records = await check(await open_store(), old, new)
    payloads = [record.payload for record in records]
    assert b"of a paused one that resumes" not in payloads
    assert [p for p in payloads if len(p) == 1] == [b"1", b"2", b"3", b"4", b"6"]


async def test_a_late_batch_that_lands_before_the_marker_is_taken_and_the_marker_is_not_acked(
    open_store: Open, raw: Raw, settings: KafkaSettings
) -> None:
    writer = await sequencer(await open_store())
    end, epoch = writer.log.end(0), writer.epoch
    late = history(3, end, epoch, "late")
    await raw.write(own_topic(settings.prefix, FRA), *late)
    writer.epoch += 1
    with pytest.raises(OutcomeUnknown):
        await writer.put(b"marker")
    await writer.take_over()
    assert writer.log.end(0).lsn == late[-1].lsn + 1
    records = await check(await open_store(), writer)
    assert records[1:4] == late


async def test_a_late_batch_that_lands_behind_the_marker_counts_for_nobody(
    open_store: Open, raw: Raw, settings: KafkaSettings
) -> None:
    writer = await sequencer(await open_store())
    late = history(3, writer.log.end(0), writer.epoch, "late")
    await writer.take_over()
    await raw.write(own_topic(settings.prefix, FRA), *late)
    with pytest.raises(OutcomeUnknown):
        await writer.put(b"meets the gap")
    await writer.take_over()
    await writer.put(b"next")
    records = await check(await open_store(), writer)
    assert not [record for record in records if record in late]


async def test_of_two_markers_of_one_epoch_the_first_wins(
    open_store: Open, raw: Raw, settings: KafkaSettings
) -> None:
    """The other's batch even has a record whose lsn is the next one."""
    writer = await sequencer(await open_store())
    other = history(4, writer.log.end(0), writer.epoch + 1, "of the other")
    await writer.take_over()
    await writer.put(b"second")
    await raw.write(own_topic(settings.prefix, FRA), *other)
    with pytest.raises(OutcomeUnknown):
        await writer.put(b"third")
    await writer.take_over()
    records = await check(await open_store(), writer)
    assert not [record for record in records if record in other]


async def test_an_unsent_batch_of_a_paused_process_is_acked_to_nobody(open_store: Open) -> None:
    """It had given out lsns and stood still while another took over."""
    old = await sequencer(await open_store(), "old")
    waiting = [asyncio.ensure_future(old.put(b"%d" % n)) for n in range(20)]
    new = await sequencer(await open_store(), "new")
    results = await asyncio.gather(*waiting, return_exceptions=True)
    await new.put(b"x")
    records = await check(await open_store(), old, new)
    acked = {record.lsn for record in old.acked}
    assert len([r for r in results if not isinstance(r, Exception)]) == len(acked) - 1
    assert records[-1].payload == b"x"


async def test_a_newer_process_takes_the_notes_away_for_good(open_store: Open) -> None:
    old = await open_store()
    new = await open_store()
    assert (old.log_id, new.boot_count) == (new.log_id, old.boot_count + 1)
    for write in (old.confirm_boot, old.renew):
        with pytest.raises(StaleWriter, match="newer process"):
            await write()
    await new.confirm_boot()
    with pytest.raises(StaleWriter):
        await old.confirm_boot()
    await new.renew()
    assert (await open_store()).log_id == new.log_id != old.log_id


# ----------------------------------------------------------------------- retention, restarts


async def test_truncation_deletes_at_the_broker_and_survives_a_restart(
    open_store: Open, raw: Raw, settings: KafkaSettings
) -> None:
    store = await open_store()
    writer = await sequencer(store)
    for number in range(100):
        await writer.put(b"%d" % number + bytes(100))
    whole = await read_all(writer.log)
    await writer.log.truncate_below(0, 60)
    first = writer.log.first_lsn(0)
    assert 1 < first <= 60
    start, _ = await raw.cluster.bounds(At(own_topic(settings.prefix, FRA), 0))
    assert start == first - 1, "offset 0 held lsn 1"
    await store.close()
    again = await open_store()
    log = await again.open_own(FRA)
    assert again.clean
    assert (log.first_lsn(0), log.end(0)) == (first, end_of(whole))
    assert await read_all(log) == whole[first - 1 :]
    with pytest.raises(LookupError):
        await log.read(0, first - 1, 1)
    assert 0 < log.stored_bytes(0, 90) < log.stored_bytes(0, first) < 41 * 200 + 2_000


async def test_a_store_that_was_killed_finds_its_end_again(open_store: Open) -> None:
    """Nothing was noted down: everything is read from the topics."""
    store = await open_store()
    writer = await sequencer(store)
    for number in range(50):
        await writer.put(b"%d" % number)
    copy = await store.open_copy(SIN)
    await copy.append_copy(history(20))
    again = await open_store()
    assert again.held()[SIN].end(0) == copy.end(0)
    assert await read_all(again.held()[SIN]) == history(20)
    await check(again, writer)


async def test_an_own_log_that_lost_its_end_is_not_clean(
    kafka: KafkaProcess, open_store: Open, raw: Raw, settings: KafkaSettings
) -> None:
    """As after a machine crash: what was acked was not on the disk. Here the topic is made anew."""
    store = await open_store()
    writer = await sequencer(store)
    await writer.put(b"acked")
    await store.close()
    await raw.cluster.delete_topic(own_topic(settings.prefix, FRA))
    again = await open_store()
    log = await again.open_own(FRA)
    assert (again.clean, log.end(0).lsn) == (False, 0)
    await again.confirm_boot()
    assert again.clean


# ----------------------------------------------------------------------------------- copies


@pytest.fixture
async def outside(open_store: Open, settings: KafkaSettings) -> Log:
    """A copy that something else fills: these tests, in MirrorMaker's place."""
    return await (await open_store(outside=True)).open_copy(SIN)


@pytest.fixture
def mirrored(settings: KafkaSettings) -> str:
    return mirrored_topic(settings.prefix, SIN)


async def test_a_copy_is_the_union_of_what_was_mirrored_and_relayed(
    outside: Log, raw: Raw, mirrored: str, open_store: Open
) -> None:
    told: list[int] = []
    outside.subscribe(lambda: told.append(outside.end(0).lsn))
    all_ = history(50)
    await raw.write(mirrored, *all_[:10])
    await until(lambda: outside.end(0).lsn == 10)
    await raw.write(mirrored, *all_[20:40])  # MirrorMaker went on later
    await asyncio.sleep(0.5)
    assert outside.end(0).lsn == 10
    await outside.append_copy(all_[10:20])
    await until(lambda: outside.end(0).lsn == 40)
    await outside.append_copy(all_[35:50])  # held ones are dropped
    await raw.write(mirrored, *all_[35:50])  # twice, as without exactly-once
    assert outside.end(0) == end_of(all_)
    assert await read_all(outside) == all_
    assert told == sorted(told) and told[-1] == 50
    again = (await open_store(outside=True)).held()[SIN]
    assert again.end(0) == end_of(all_)
    assert await read_all(again) == all_


async def test_what_does_not_follow_is_never_taken(
    outside: Log, raw: Raw, mirrored: str, settings: KafkaSettings
) -> None:
    good = history(10)
    await raw.write(mirrored, *good[:5])
    stale = history(9, end_of(good[:5]), 1, "of another history")
    marker = history(1, end_of(good[:5]), 2, "marker")
    await raw.write(mirrored, *marker, *stale)
    tail = history(5, end_of(marker), 2, "goes on")
    await raw.write(mirrored, *tail)
    await until(lambda: outside.end(0) == end_of(tail))
    assert await read_all(outside) == good[:5] + marker + tail
    with pytest.raises(Damaged, match="does not"):
        await outside.append_copy(history(1, end_of(stale), 2))
    with pytest.raises(Damaged, match="differs"):
        await outside.append_copy([tail[-1]._replace(chain=bytes(16))])


async def test_an_aborted_transaction_is_not_read(
    outside: Log, raw: Raw, mirrored: str, settings: KafkaSettings
) -> None:
    aborted, committed = history(3, what="aborted"), history(3, what="committed")
    producer = AIOKafkaProducer(
        bootstrap_servers=list(settings.brokers),
        transactional_id=f"mm-{secrets.token_hex(4)}",
        security_protocol="SSL",
        ssl_context=settings.ssl_context(),
    )
    await producer.start()
    try:
        for records, ends in (
            (aborted, producer.abort_transaction),
            (committed, producer.commit_transaction),
        ):
            await producer.begin_transaction()
            for record in records:
                await producer.send_and_wait(mirrored, pack(record), partition=0)
            assert outside.end(0).lsn == 0
            await ends()
    finally:
        await producer.stop()
    await until(lambda: outside.end(0) == end_of(committed))
    assert await read_all(outside) == committed


async def test_a_mirrored_topic_may_appear_later(
    open_store: Open, raw: Raw, mirrored: str, settings: KafkaSettings
) -> None:
    copy = await (await open_store()).open_copy(SIN)
    await copy.append_copy(history(5))
    await admin.ensure(raw.cluster, [admin.log_topic(mirrored, PARTITIONS, settings)])
    await raw.write(mirrored, *history(8))
    await until(lambda: copy.end(0).lsn == 8)


async def test_a_topic_that_is_missing_is_looked_for_once_for_all_its_partitions(
    settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As relays are, which most deployments never need."""
    cluster = Cluster(settings, "fra")
    tail = Tail(cluster)
    looks: list[Sequence[str] | None] = []
    look = cluster.look

    async def counted(topics: Sequence[str] | None) -> set[str]:
        looks.append(topics)
        return await look(topics)

    class Nobody:
        offset = 0

        def took(self, fetched: Fetched) -> None:
            raise AssertionError(fetched)

        async def out_of_range(self) -> None:
            raise AssertionError

    monkeypatch.setattr(cluster, "look", counted)
    try:
        for number in range(8):
            tail.follow(At("not-there", number), Nobody())
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(2.5 * MISSING_S)
        most = 1.5 + (asyncio.get_running_loop().time() - began) / MISSING_S
        assert looks.count(["not-there"]) <= most
        await until(lambda: looks.count(["not-there"]) >= 2)
    finally:
        await tail.close()
        await cluster.close()


async def test_nothing_mirrored_above_a_cut_comes_back(
    outside: Log, raw: Raw, mirrored: str, open_store: Open
) -> None:
    first = history(30)
    await raw.write(mirrored, *first)
    await until(lambda: outside.end(0).lsn == 30)
    await outside.cut_above(0, 20)
    assert outside.end(0) == end_of(first[:20])
    await raw.write(mirrored, *history(5, end_of(first)))
    await asyncio.sleep(0.5)
    assert outside.end(0).lsn == 20
    instead = history(7, end_of(first[:20]), 2, "instead")
    await outside.append_copy(instead)
    assert await read_all(outside) == first[:20] + instead
    again = (await open_store(outside=True)).held()[SIN]
    assert await read_all(again) == first[:20] + instead


async def test_a_copy_begins_anew_behind_a_snapshot(
    outside: Log, raw: Raw, mirrored: str, open_store: Open
) -> None:
    all_ = history(60)
    await raw.write(mirrored, *all_[:10])
    await outside.append_copy(all_[:20])
    await until(lambda: outside.end(0).lsn == 20)
    await outside.restart_at(0, end_of(all_[:40]))
    assert (outside.first_lsn(0), outside.end(0)) == (41, end_of(all_[:40]))
    with pytest.raises(LookupError):
        await outside.read(0, 40, 1)
    await raw.write(mirrored, *all_[10:50])
    await until(lambda: outside.end(0).lsn == 50)
    await outside.append_copy(all_[50:])
    again = (await open_store(outside=True)).held()[SIN]
    for log in (outside, again):
        assert (log.first_lsn(0), log.end(0)) == (41, end_of(all_))
        assert await read_all(log) == all_[40:]


@hasty
async def test_a_copy_follows_on_after_its_broker_was_away(
    kafka: KafkaProcess, outside: Log, raw: Raw, mirrored: str
) -> None:
    all_ = history(20)
    await raw.write(mirrored, *all_[:10])
    await until(lambda: outside.end(0).lsn == 10)
    kafka.kill()
    with pytest.raises(Unavailable):
        await outside.append_copy(all_[10:12])
    await asyncio.to_thread(kafka.start)
    await raw.cluster.look([mirrored])
    await raw.write(mirrored, *all_[10:])
    await until(lambda: outside.end(0).lsn == 20)


# ------------------------------------------------------------------------------------ trust


async def test_a_certificate_of_another_ca_is_refused_in_one_sentence(
    kafka: KafkaProcess, tmp_path: Path
) -> None:
    pki.init(tmp_path, {"fra": ()}, datetime.now(UTC))
    theirs = kafka.settings("trust")
    for wrong in (
        KafkaSettings(theirs.brokers, "trust", tmp_path / "ca.pem"),
        KafkaSettings(
            theirs.brokers, "trust", theirs.ca_file, tmp_path / "fra.pem", tmp_path / "fra.key"
        ),
    ):
        with pytest.raises(NotTrusted, match="check ca_file, cert_file and key_file") as refused:
            await store_of(wrong, "fra", PARTITIONS, random.Random(1))
        assert "\n" not in str(refused.value)


async def test_another_idc_of_the_region_may_do_nothing_here(kafka: KafkaProcess) -> None:
    settings = kafka.settings("trust", "sin")
    with pytest.raises(NotTrusted, match="does not let this certificate"):
        await store_of(settings, "fra", PARTITIONS, random.Random(1))


async def test_another_idcs_mirror_may_read_the_own_logs_and_nothing_else(
    kafka: KafkaProcess, open_store: Open, raw: Raw, settings: KafkaSettings
) -> None:
    store = await open_store()
    writer = await sequencer(store)
    await writer.put(b"to be mirrored")
    await (await store.open_copy(SIN)).append_copy(history(3))
    for _ in range(2):  # again is no error
        await allow(raw.cluster, principal("sin"), of_mirrors(settings.prefix))
    own = At(own_topic(settings.prefix, FRA), 0)
    theirs = Cluster(kafka.settings(settings.prefix, "sin", PATIENT_S), "fra")
    try:
        async with asyncio.timeout(60):  # the broker takes a moment to hear of it
            while own.topic not in await theirs.look([own.topic]):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert len((await theirs.fetch_one(own, 0, 10_000)).records) == 2
        with pytest.raises(NotTrusted):
            await Writer(theirs, own.topic).write(0, [b"x"])
        with pytest.raises(NotTrusted):
            await theirs.delete_below(own, 1)
        relay = At(relay_topic(settings.prefix, SIN), 0)
        for hidden in (relay, At(meta_topic(settings.prefix), 0)):
            with pytest.raises((NotTrusted, NoTopic)):
                await theirs.bounds(hidden)
    finally:
        await theirs.close()


async def test_a_listener_for_another_idc_sends_it_through_its_link(
    kafka: KafkaProcess, settings: KafkaSettings
) -> None:
    """Its clients find the broker where the link proxy listens, not where it really is."""
    host, _, port = kafka.for_sin.advertised.rpartition(":")
    entry = replace(kafka.settings("any", "sin"), brokers=(kafka.for_sin.address,))
    cluster = Cluster(entry, "fra")
    try:
        assert await cluster.places() == {1: (host, int(port))}
    finally:
        await cluster.close()


async def test_no_connection_is_left_behind_however_they_were_made(
    settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some look and ask at once, and one is still connecting when all is closed."""
    made: list[AIOKafkaConnection] = []
    slow = asyncio.Event()
    slow.set()

    async def connect(*args: Any, **options: Any) -> AIOKafkaConnection:
        connection = await dial(*args, **options)
        made.append(connection)
        await slow.wait()
        return connection

    monkeypatch.setattr(kafka_cluster, "dial", connect)
    cluster = Cluster(settings, "fra")
    (node,) = await cluster.places()
    cluster._drop(node, kafka_cluster.ADMIN)
    slow.clear()
    before = len(made)
    first = [cluster.shapes(["any"]), cluster.ask(MetadataRequest([], False)), cluster.shapes([])]
    working = asyncio.gather(*first, cluster.places())
    await until(lambda: len(made) > before)
    await asyncio.sleep(0.3)
    slow.set()
    await working
    slow.clear()
    before = len(made)
    late = asyncio.ensure_future(cluster.call(node, MetadataRequest([], False), "a lane"))
    await until(lambda: len(made) > before)
    await cluster.close()
    slow.set()
    with pytest.raises(Unavailable, match="closed"):
        await late
    assert len(made) >= 4
    assert [it for it in made if it.connected()] == []


@hasty
async def test_a_broker_that_says_no_goodbye_does_not_hold_the_end_up(
    kafka: KafkaProcess, settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS waits for the other side's; one that answers a long fetch, or is paused, says none."""
    sockets: list[Any] = []

    async def connect(*args: Any, **options: Any) -> AIOKafkaConnection:
        connection = await dial(*args, **options)
        sockets.append(connection._writer.get_extra_info("socket"))
        return connection

    monkeypatch.setattr(kafka_cluster, "dial", connect)
    cluster = Cluster(settings, "fra")
    (node,) = await cluster.places()
    await cluster.call(node, MetadataRequest([], False), "a lane")
    kafka.pause()
    try:
        given_up = asyncio.ensure_future(cluster.call(node, MetadataRequest([], False), "a lane"))
        await asyncio.sleep(0.1)
        given_up.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await given_up
        await cluster.close()
        assert [socket.fileno() for socket in sockets] == [-1, -1]
    finally:
        kafka.resume()


async def test_a_connection_that_is_given_up_while_it_is_made_is_gone(
    kafka: KafkaProcess, settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was left to a goodbye for which nobody waited: the end of the loop found it open."""
    sockets: list[Any] = []

    async def greet(self: AIOKafkaConnection) -> None:
        sockets.append(self._writer.get_extra_info("socket"))
        kafka.pause()
        await asyncio.sleep(60)

    monkeypatch.setattr(AIOKafkaConnection, "_do_version_lookup", greet)
    cluster = Cluster(settings, "fra")
    looking = asyncio.ensure_future(cluster.places())
    try:
        async with asyncio.timeout(PATIENT_S):
            while not sockets:  # noqa: ASYNC110 - nothing to wait on
                await asyncio.sleep(0.01)
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
        await cluster.close()
        await asyncio.sleep(0)
        assert sockets[0].fileno() == -1
    finally:
        kafka.resume()


# --------------------------------------------------------------------------- how far a mirror is


async def test_what_was_cut_before_it_was_copied_is_not_behind(
    settings: KafkaSettings, raw: Raw
) -> None:
    """A MirrorMaker that comes to a log late begins where the log does."""
    topic = own_topic(settings.prefix, FRA)
    await admin.ensure(raw.cluster, [admin.log_topic(topic, PARTITIONS, settings)])
    all_ = history(10)
    await raw.write(topic, *all_)
    lag = MirrorLag(raw.cluster, {"fra": raw.cluster}, "iad", SystemClock())
    await lag.measure()
    assert lag.figures()["fra"]["partitions"] == {0: {"behind": 10}, 1: {"behind": 0}}
    await raw.cluster.delete_below(At(topic, 0), 8)
    again = MirrorLag(raw.cluster, {"fra": raw.cluster}, "iad", SystemClock())
    await again.measure()
    assert again.figures()["fra"]["problem"] == ""
    assert again.figures()["fra"]["partitions"] == {0: {"behind": 2}, 1: {"behind": 0}}


# -------------------------------------------------------------------------- what is wanted


async def test_what_the_region_file_wants_is_made_or_said_and_nothing_is_changed(
    open_store: Open, settings: KafkaSettings, raw: Raw
) -> None:
    store = await open_store()
    await store.open_own(FRA)
    assert (store.durability, store.fsynced, store.alarms()) == ("replicated", False, [])
    flush = replace(settings, durability="flush")
    again = await store_of(flush, "fra", PARTITIONS, random.Random())
    try:
        await again.open_own(FRA)
        await again.open_own(FRA._replace(incarnation=2))
        assert (again.durability, again.fsynced) == ("flush", True)
        old = own_topic(settings.prefix, FRA)
        new = own_topic(settings.prefix, FRA._replace(incarnation=2))
        said = [line for line in again.alarms() if line.startswith(old)]
        assert len(said) == 1 and "flush.messages is" in said[0] and "wanted 1" in said[0]
        assert not [line for line in again.alarms() if line.startswith(new)]
        meta = meta_topic(settings.prefix)
        found = await admin.describe(raw.cluster, [old, new, meta])
        assert found[meta].settings["cleanup.policy"] == "compact"
        assert int(found[meta].settings["segment.bytes"]) == admin.META_SEGMENT_BYTES
        assert found[new].settings["flush.messages"] == "1"
        assert found[old].settings["flush.messages"] != "1", "what exists stays as it is"
        assert found[new].settings["retention.ms"] == found[new].settings["retention.bytes"] == "-1"
    finally:
        await again.close()


async def test_a_topic_that_is_changed_later_is_told_and_one_that_is_put_right_is_not_any_more(
    open_store: Open, settings: KafkaSettings, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By nobody who starts the IDC anew for it."""
    monkeypatch.setattr(log_store, "LOOK_S", 0.2)
    monkeypatch.setattr(log_store, "LOOK_AFTER_DIFFERENCES_S", 0.1)
    store = await open_store()
    await store.open_own(FRA)
    topic = own_topic(settings.prefix, FRA)
    await alter(raw.cluster, topic, {"retention.ms": "60000"})
    await until(lambda: bool(store.alarms()))
    assert f"{topic}: retention.ms is 60000, wanted -1" in store.alarms()
    wanted = admin.log_topic(topic, PARTITIONS, settings).settings
    await alter(raw.cluster, topic, wanted)
    await until(lambda: not store.alarms())


async def test_topics_are_planned_and_nothing_is_changed(
    kafka: KafkaProcess, open_store: Open, settings: KafkaSettings, raw: Raw, tmp_path: Path
) -> None:
    """`imctl engines topics`."""
    region = tmp_path / "region.yaml"

    def write(**kafka_says: Any) -> None:
        document = yaml.safe_load(REGION.read_text())
        document["spec"]["partitions"] = PARTITIONS
        document["spec"]["idcs"][0]["engines"] = {
            "log": {
                "kafka": {
                    "brokers": list(settings.brokers), "ca_file": str(settings.ca_file),
                    "cert_file": str(settings.cert_file), "key_file": str(settings.key_file),
                    "topic_prefix": settings.prefix, "replication_factor": 1,
                    "min_insync_replicas": 1, "durability": "flush",
                } | kafka_says
            }
        }  # fmt: skip
        region.write_text(yaml.safe_dump(document))

    async def topics(*more: str) -> tuple[int, list[dict[str, Any]], str]:
        command = ("engines", "topics", region, *more, "-o", "json")
        done = await asyncio.to_thread(alone, *command, timeout_s=60)
        rows = json.loads(done.stdout)["topics"] if done.stdout else []
        return done.returncode, rows, " ".join(done.stderr.split())

    write()
    code, rows, _ = await topics("--idc", "fra")
    names = [meta_topic(settings.prefix), own_topic(settings.prefix, FRA)]
    assert (code, [(row["topic"], row["state"]) for row in rows]) == (
        2,
        [(name, "missing") for name in names],
    )
    assert not await raw.cluster.look(names) & set(names), "nothing was made"

    flush = await store_of(
        replace(settings, durability="flush"), "fra", PARTITIONS, random.Random()
    )
    await flush.open_own(FRA)
    await flush.close()
    code, rows, _ = await topics()
    assert (code, [row["differences"] for row in rows]) == (0, [[], []])
    assert {row["idc"] for row in rows} == {"fra"}

    before = await admin.describe(raw.cluster, names)
    write(topic_prefix=settings.prefix, replication_factor=2)
    code, rows, _ = await topics()
    assert code == 2
    wanted = {"setting": "replication.factor", "found": "1", "wanted": "2"}
    assert [row["differences"] for row in rows] == [[wanted], [wanted]]
    assert await admin.describe(raw.cluster, names) == before

    (nowhere,) = free_ports(1)
    write(brokers=[f"127.0.0.1:{nowhere}"])
    code, _, said = await topics()
    assert code == 1 and f"fra's Kafka at 127.0.0.1:{nowhere} cannot be reached" in said
    code, _, said = await topics("--idc", "sin")
    assert code == 2 and "--idc: expected an IDC whose log is on Kafka (fra), got 'sin'" in said


@pytest.mark.nightly
async def test_what_is_noted_down_again_and_again_is_compacted(
    settings: KafkaSettings, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "META_SEGMENT_BYTES", 1 << 20)
    topic = admin.meta(meta_topic(settings.prefix), settings)
    await admin.ensure(raw.cluster, [topic])
    meta = Meta(raw.cluster)
    await meta.open()
    for number in range(50):
        await meta.put({"key": f"{number} " + "x" * 100_000})

    async def stored() -> int:
        """Bytes."""
        at, size = At(topic.name, 0), 0
        offset, end = await raw.cluster.bounds(at)
        while offset < end:
            fetched = await raw.cluster.fetch_one(at, offset, 1 << 20)
            size += sum(len(value) for _, value in fetched.records)
            offset = fetched.next
        return size

    assert await stored() > 5_000_000
    async with asyncio.timeout(60):  # the broker's cleaner looks each 15 s
        while await stored() > 2_500_000:  # noqa: ASYNC110
            await asyncio.sleep(1)


async def alter(cluster: Cluster, topic: str, settings: Mapping[str, str]) -> None:
    """All settings of it."""
    reply = await cluster.ask(AlterConfigsRequest([(2, topic, list(settings.items()))]))
    assert [row[0] for row in reply.resources] == [0], reply.resources


async def test_an_own_log_whose_end_is_lost_under_it_takes_nothing_more(
    open_store: Open, raw: Raw, settings: KafkaSettings
) -> None:
    """Nobody could read past the hole: the next incarnation begins where everybody can."""
    writer = await sequencer(await open_store())
    await writer.put(b"acked")
    topic = own_topic(settings.prefix, FRA)
    await raw.cluster.delete_topic(topic)
    await admin.ensure(raw.cluster, [admin.log_topic(topic, PARTITIONS, settings)])
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await writer.put(b"into another topic")
    for _ in range(2):
        with pytest.raises(Damaged, match="takes the next incarnation"):
            await writer.log.reopen(0)
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await writer.put(b"still nothing")
