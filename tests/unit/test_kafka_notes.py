"""What is noted down of a log while it is cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import cast

import pytest

from imcore.words import Origin
from services.engines.kafka.batches import Fetched
from services.engines.kafka.cluster import At, Cluster
from services.engines.kafka.log import RELAY, KafkaLog, Kept
from services.engines.kafka.log_store import KafkaLogStore
from services.engines.kafka.meta import Meta
from services.engines.kafka.settings import KafkaSettings
from services.engines.kafka.tail import Tail
from services.engines.kafka.transactions import Transactions
from services.engines.kafka.union import Cuts, Union
from services.engines.records import EMPTY_END, pack, records_after
from services.ports import LogEnd, Record

IAD = Origin("iad", 1)
TOPICS = ("mirrored", "relay")


class Topics(Cluster):
    def __init__(self) -> None:
        super().__init__(KafkaSettings(("127.0.0.1:9",), "im"), "fra")
        self.records: dict[str, list[Record]] = {name: [] for name in TOPICS}

    async def fetch_one(self, at: At, offset: int, size: int) -> Fetched:
        topic = self.records[at.topic]
        page = [(n, pack(topic[n])) for n in range(offset, len(topic))]
        return Fetched(page, len(topic), len(topic), 0)

    async def bounds(self, at: At) -> tuple[int, int]:
        return 0, len(self.records[at.topic])

    async def delete_below(self, at: At, offset: int) -> None: ...


class Slow:
    """Transactions that end when a test lets them."""

    held = True

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def write(self, at: At, rows: Sequence[bytes], keys: Sequence[str]) -> None:
        await self.go_on.wait()


class Place:
    """A store with one log, of which ten records have been read."""

    def __init__(self) -> None:
        self.cluster, self.slow = Topics(), Slow()
        self.meta = Meta(self.cluster)
        self.meta._transactions = cast(Transactions, self.slow)
        self.store = KafkaLogStore(
            self.cluster, self.meta, "fra", 1, False, random.Random(), 1 << 20
        )

        tail = Tail(self.cluster)
        self.log = KafkaLog(IAD, TOPICS, 1, self.cluster, tail, {}, self.keep, self.nothing)
        self.store._logs[IAD] = self.log

    async def keep(self, partition: int, kept: Kept) -> None:
        await self.store._keep(IAD, partition, kept)

    async def nothing(self) -> None: ...

    def write(self, source: int, end: LogEnd, count: int) -> list[Record]:
        records = records_after(end, 0, 1, [b"%d" % number for number in range(count)])
        self.cluster.records[TOPICS[source]] += records
        return records

    def opened_again(self) -> Union:
        """As it would be read by a later process: hints, cuts, and nothing else."""
        kept = self.store._kept(IAD, 0)
        log = KafkaLog(
            IAD, TOPICS, 1, self.cluster, Tail(self.cluster), {0: kept}, self.keep, self.nothing
        )  # fmt: skip
        return log._parts[0].union

    async def settled(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def place() -> Place:
    place = Place()
    place.write(0, EMPTY_END, 10)
    await place.log.open()
    await place.store._note_down(1)
    return place


async def test_a_note_that_waits_for_a_cut_is_not_put_over_it(place: Place) -> None:
    end = place.write(0, place.log.end(0), 5)[-1]
    await place.log._catch_up(place.log._parts[0])
    place.slow.go_on.clear()
    cutting = asyncio.ensure_future(place.log.cut_above(0, 4))
    await place.settled()
    noting = asyncio.ensure_future(place.store._note_down(1))
    await place.settled()
    place.slow.go_on.set()
    await asyncio.gather(cutting, noting)
    assert end.lsn == 15 and place.log.end(0).lsn == 4
    found = place.opened_again()
    assert (found.end.lsn, found.cuts.above) == (4, 4)


async def test_a_truncation_that_waits_for_a_cut_leaves_that_as_it_is(place: Place) -> None:
    place.slow.go_on.clear()
    cutting = asyncio.ensure_future(place.log.cut_above(0, 4))
    await place.settled()
    truncating = asyncio.ensure_future(place.log.truncate_below(0, 20))
    await place.settled()
    place.slow.go_on.set()
    await asyncio.gather(cutting, truncating)
    found = place.opened_again()
    assert (found.end.lsn, found.cuts.above) == (4, 4)


async def test_what_is_taken_behind_a_cut_is_noted_down(place: Place) -> None:
    await place.log.cut_above(0, 4)
    place.write(RELAY, place.log.end(0), 3)
    await place.log._catch_up(place.log._parts[0])
    await place.store._note_down(1)
    assert place.opened_again().end.lsn == 7


async def test_what_stands_is_not_noted_down_again(place: Place) -> None:
    place.slow.go_on.clear()
    async with asyncio.timeout(5):
        await place.store._note_down(1)
    assert place.store._kept(IAD, 0).cuts == Cuts()
