"""A log on a real Kafka: opened, written and read as a node does it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from imcore.errors import OutcomeUnknown, Unavailable
from imcore.words import Origin
from services.engines.kafka.log_store import KafkaLogStore
from services.node.waiting import when_it_answers
from services.ports import Log, Record

FRA = Origin("fra", 1)


async def store_of(*arguments: Any, **named: Any) -> KafkaLogStore:
    """As a node opens it."""
    return await when_it_answers(partial(KafkaLogStore.open, *arguments, **named), "Kafka")


class Sequencer:
    """What services.im.partition does with its log."""

    def __init__(self, log: Log, name: str) -> None:
        self.log, self.name = log, name
        self.epoch = 0
        self.acked: list[Record] = []

    async def put(self, *payloads: bytes) -> list[Record]:
        future: asyncio.Future[Sequence[Record] | Exception]
        future = asyncio.get_running_loop().create_future()
        self.log.append(0, self.epoch, payloads, future.set_result)
        result = await future
        if isinstance(result, Exception):
            raise result
        self.acked += result
        return list(result)

    async def take_over(self) -> None:
        """Until an epoch is open."""
        async with asyncio.timeout(40):
            while True:
                with contextlib.suppress(Unavailable, OutcomeUnknown):
                    await self.log.reopen(0)
                    self.epoch = self.log.end(0).epoch + 1
                    await self.put(b"marker of " + self.name.encode())
                    return
                await asyncio.sleep(0.1)

    async def write_on(self, stop: asyncio.Event) -> int:
        """Five at once, again and again, taking over after each failure; how many there were."""
        failures = number = 0
        while not stop.is_set():
            try:
                await asyncio.gather(*(self.put(b"%d" % (number + n)) for n in range(5)))
            except (OutcomeUnknown, Unavailable):
                failures += 1
                await self.take_over()
            number += 5
            await asyncio.sleep(0.001)
        return failures


async def sequencer(store: KafkaLogStore, name: str = "a") -> Sequencer:
    opened = Sequencer(await store.open_own(FRA), name)
    await opened.take_over()
    return opened


async def read_all(log: Log, partition: int = 0) -> list[Record]:
    records: list[Record] = []
    lsn = log.first_lsn(partition)
    while page := await log.read(partition, lsn, 3_000):
        records += page
        lsn = page[-1].lsn + 1
    return records


async def check(store: KafkaLogStore, *writers: Sequencer) -> list[Record]:
    """A fresh reader takes every acked record, each once, in one row."""
    log = await store.open_own(FRA)
    records = await read_all(log)
    assert [record.lsn for record in records] == list(range(1, len(records) + 1))
    by_lsn = {record.lsn: record for record in records}
    for writer in writers:
        for record in writer.acked:
            assert by_lsn[record.lsn] == record
    return records


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # what it waits for happens in a broker
            await asyncio.sleep(0.02)
