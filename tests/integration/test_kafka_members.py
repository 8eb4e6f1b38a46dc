"""The log on a Kafka of three brokers: what one of them costs, and what two do; and who is let in
by a password."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imcore.errors import NotTrusted, OutcomeUnknown, Unavailable
from imctl.engines.binaries import Program
from imctl.testing.kafka import PASSWORD, USER, Members, running_members
from services.engines.kafka import admin
from services.engines.kafka.cluster import At, Cluster
from services.engines.kafka.log_store import KafkaLogStore
from services.engines.kafka.settings import KafkaSettings, own_topic
from services.engines.kafka.writer import Writer
from tests.integration.kafkalogs import (
    FRA,
    Sequencer,
    check,
    read_all,
    sequencer,
    store_of,
    until,
)

PARTITIONS = 2
DEADLINE_S = 2.0  # where too few brokers are there
PATIENT_S = 15.0  # where they are, on a machine that may stand still
ELECTION_S = 60.0  # a session of 2 s and an election, or two if it led the controllers too


@pytest.fixture(scope="module")
def members(
    kafka_program: Program, pki_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Members]:
    with running_members(kafka_program, tmp_path_factory.mktemp("members"), pki_dir) as members:
        yield members


@pytest.fixture
async def settings(members: Members) -> KafkaSettings:
    settings = members.settings(f"members-{secrets.token_hex(4)}", PATIENT_S)
    async with cluster_of(settings) as cluster, asyncio.timeout(60):
        while len(await cluster.places()) < len(members.each):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return settings


@contextlib.asynccontextmanager
async def cluster_of(settings: KafkaSettings) -> AsyncIterator[Cluster]:
    cluster = Cluster(settings, "fra")
    try:
        yield cluster
    finally:
        await cluster.close()


Open = Callable[..., Awaitable[KafkaLogStore]]


@pytest.fixture
async def open_store(settings: KafkaSettings) -> AsyncIterator[Open]:
    """``await open_store()``: one more process of fra, so to say."""
    async with contextlib.AsyncExitStack() as stack:

        async def opener(deadline_s: float = PATIENT_S) -> KafkaLogStore:
            patient = replace(settings, deadline_s=deadline_s)
            store = await store_of(patient, "fra", PARTITIONS, random.Random())
            stack.push_async_callback(store.close)
            return store

        yield opener


async def leader_of(members: Members, settings: KafkaSettings) -> int:
    async with cluster_of(settings) as cluster:
        return await cluster.leader(At(own_topic(settings.prefix, FRA), 0))


# ------------------------------------------------------------------------- brokers that are away


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_broker_that_cannot_be_reached_is_not_the_one_that_is_asked(
    members: Members, settings: KafkaSettings, lost: int
) -> None:
    """The cluster names it first, or second, or third."""
    topic = admin.log_topic(f"{settings.prefix}.log.1", 1, settings)
    async with cluster_of(settings) as cluster:
        await admin.ensure(cluster, [topic])
    async with cluster_of(members.without(lost, settings)) as cluster:
        await cluster.look([])
        for _ in range(3):
            assert set(await admin.describe(cluster, [topic.name])) == {topic.name}
            assert (await Writer(cluster, topic.name)._producer()).id >= 0


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_a_leader_that_goes_costs_an_election(
    how: str,
    members: Members,
    settings: KafkaSettings,
    open_store: Open,
    figures: Callable[[str, object], None],
) -> None:
    """And no deadline of ours, not even where its machine hangs and keeps the connection."""
    writer = await sequencer(await open_store(deadline_s=5 * ELECTION_S))
    stop = asyncio.Event()
    writing = asyncio.ensure_future(writer.write_on(stop))
    await until(lambda: len(writer.acked) > 200, ELECTION_S)
    leader = members[await leader_of(members, settings)]
    began = time.monotonic()
    (leader.kill if how == "killed" else leader.pause)()
    try:
        count = len(writer.acked) + 5  # what was answered already
        await until(lambda: len(writer.acked) > count + 20, ELECTION_S)
        figures(f"time without an append, leader {how}", f"{time.monotonic() - began:.2f} s")
    finally:
        if how == "killed":
            await asyncio.to_thread(leader.start)
        else:
            leader.resume()
    count = len(writer.acked)
    await until(lambda: len(writer.acked) > count + 200, ELECTION_S)
    stop.set()
    assert await writing >= 1
    await check(await open_store(), writer)


@pytest.mark.nightly
async def test_a_replica_that_goes_costs_no_acked_record_and_two_stop_the_log_until_one_is_back(
    members: Members, settings: KafkaSettings, open_store: Open
) -> None:
    """With two of three brokers the controller's majority is gone too: nobody can say that the
    others are out of sync. So what is appended then is in doubt, and nothing is acked."""
    writer = await sequencer(await open_store(deadline_s=DEADLINE_S))
    leader = await leader_of(members, settings)
    gone = [one for number, one in enumerate(members.each, 1) if number != leader]
    await writer.put(b"by three")
    gone[0].kill()
    try:
        await writer.take_over()
        await writer.put(b"by two")
        gone[1].kill()
        acked = len(writer.acked)
        for _ in range(3):
            with pytest.raises((OutcomeUnknown, Unavailable)):
                await writer.log.reopen(0)
                writer.epoch = writer.log.end(0).epoch + 1
                await writer.put(b"by one alone")
        assert len(writer.acked) == acked
    finally:
        for one in gone:
            one.kill()
            one.launch()
        for one in gone:
            await asyncio.to_thread(one.wait)
    await writer.take_over()
    await writer.put(b"by three again")
    records = await check(await open_store(), writer)
    assert records[-1].payload == b"by three again"


@pytest.mark.nightly
async def test_too_few_in_sync_replicas_refuse_what_is_appended_and_it_goes_on_once_they_are_back(
    members: Members, settings: KafkaSettings
) -> None:
    """All three must be in sync here, so that the controller can still say that one is not."""
    all_three = replace(settings, min_insync_replicas=3, deadline_s=DEADLINE_S)
    store = await store_of(all_three, "fra", PARTITIONS, random.Random())
    try:
        writer = await sequencer(store)
        leader = await leader_of(members, settings)
        follower = members[leader % 3 + 1]
        follower.kill()
        try:
            payload = await refused(writer)
        finally:
            await asyncio.to_thread(follower.start)
        await writer.take_over()
        await writer.put(b"by three again")
        payloads = [record.payload for record in await read_all(writer.log)]
        assert payload not in payloads and payloads[-1] == b"by three again"
        again = await store_of(all_three, "fra", PARTITIONS, random.Random())
        try:
            await check(again, writer)
        finally:
            await again.close()
    finally:
        await store.close()


async def refused(writer: Sequencer) -> bytes:
    """What the brokers would not append, once they know that they are too few."""
    async with asyncio.timeout(ELECTION_S):
        for number in itertools.count():
            payload = b"attempt %d" % number
            try:
                await writer.log.reopen(0)
                writer.epoch = writer.log.end(0).epoch + 1
                await writer.put(payload)
            except Unavailable as error:
                if "NotEnoughReplicas" in str(error):
                    return payload
            except OutcomeUnknown:  # appended, but not by all: nobody knows yet
                pass
            await asyncio.sleep(0.05)
    raise AssertionError


# ------------------------------------------------------------------------------------ passwords


async def test_a_user_is_let_in_by_the_right_password(
    members: Members, settings: KafkaSettings
) -> None:
    by_password = members.by_password(settings, USER, PASSWORD)
    store = await store_of(by_password, "fra", PARTITIONS, random.Random())
    try:
        writer = await sequencer(store)
        await writer.put(b"by the user")
        again = await store_of(by_password, "fra", PARTITIONS, random.Random())
        try:
            await check(again, writer)
        finally:
            await again.close()
    finally:
        await store.close()


@pytest.mark.parametrize(("user", "password"), [(USER, "wrong"), ("nobody", PASSWORD)])
async def test_a_wrong_user_or_password_is_refused_in_one_sentence_at_once(
    members: Members, settings: KafkaSettings, user: str, password: str
) -> None:
    wrong = members.by_password(settings, user, password)
    async with asyncio.timeout(30):
        with pytest.raises(NotTrusted, match="check username and password_file") as said:
            await store_of(wrong, "fra", PARTITIONS, random.Random(1))
    assert "\n" not in str(said.value) and password not in str(said.value)
