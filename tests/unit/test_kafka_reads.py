"""What is read back of topics that a broker gives in small pages."""

from __future__ import annotations

import pytest

from imcore.errors import Damaged
from imcore.words import Origin
from services.engines.kafka.batches import Fetched
from services.engines.kafka.cluster import At, Cluster
from services.engines.kafka.index import Hint
from services.engines.kafka.log import OWN, KafkaLog, Kept
from services.engines.kafka.settings import KafkaSettings
from services.engines.kafka.tail import Tail
from services.engines.kafka.union import Cuts
from services.engines.records import EMPTY_END, pack, records_after
from services.ports import LogEnd, Record

TOPICS = ("mirrored", "relay")
OLDER = 20  # records, and so pages


class Pages(Cluster):
    """Two topics of packed records; a page holds one of them."""

    def __init__(self, mirrored: list[Record], relay: list[Record]) -> None:
        super().__init__(KafkaSettings(("127.0.0.1:9",), "im"), "fra")
        self.topics = dict(zip(TOPICS, (mirrored, relay), strict=True))

    async def fetch_one(self, at: At, offset: int, size: int) -> Fetched:
        topic = self.topics[at.topic]
        page = [(offset, pack(record)) for record in topic[offset : offset + 1]]
        return Fetched(page, offset + len(page), len(topic), 0)

    async def bounds(self, at: At) -> tuple[int, int]:
        return 0, len(self.topics[at.topic])


async def opened(cluster: Pages, hint: Hint) -> KafkaLog:
    async def keep(partition: int, kept: Kept) -> None: ...

    async def make_relay() -> None: ...

    kept = {0: Kept([hint], Cuts())}
    log = KafkaLog(
        Origin("iad", 1), TOPICS, 1, cluster, Tail(cluster), kept, keep, make_relay, 1 << 30
    )
    await log.open()
    log._parts[0].recent.clear()  # as when it was long ago
    return log


def after(end: LogEnd, count: int) -> list[Record]:
    return records_after(end, 0, 1, [b"%d" % number for number in range(count)])


async def test_behind_many_pages_of_older_records_the_other_topic_is_read_too() -> None:
    older = after(EMPTY_END, OLDER)
    end = LogEnd(older[-1].lsn, older[-1].chain, older[-1].epoch)
    newer = after(end, 3)
    # A copy that begins behind a snapshot: MirrorMaker's topic has what is in that.
    log = await opened(Pages(older, newer), Hint(end, (0, 0), OWN, 0))
    assert log.end(0).lsn == newer[-1].lsn
    assert await log.read(0, OLDER + 1, 1 << 20) == newer


async def test_what_no_topic_has_any_more_is_still_said() -> None:
    older = after(EMPTY_END, OLDER)
    end = LogEnd(older[-1].lsn, older[-1].chain, older[-1].epoch)
    cluster = Pages(older, after(end, 3))
    log = await opened(cluster, Hint(end, (0, 0), OWN, 0))
    cluster.topics["relay"] = []
    with pytest.raises(Damaged, match="in no topic any more"):
        await log.read(0, OLDER + 1, 1 << 20)
