"""Topics: made when they are missing, compared with what the region file wants when they are there.

Nothing that exists is ever changed, shrunk or deleted: the plan only says what differs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from aiokafka.errors import TopicAlreadyExistsError, for_code
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest

from imcore.errors import Unavailable
from services.engines.kafka.cluster import At, Cluster, NoTopic
from services.engines.kafka.settings import FLUSH, KafkaSettings, meta_topic

# Compacted by whole segments that nobody writes to any more, and read whole at a start.
META_SEGMENT_BYTES = 16 << 20
META_SEGMENT_MS = 24 * 3600 * 1000
MESSAGE_BYTES_MAX = 17 << 20  # the largest record between IDCs, and what surrounds it
_TOPIC_RESOURCE = 2
_RETRY_S = 0.05


class Topic(NamedTuple):
    name: str
    partitions: int
    replication_factor: int
    settings: Mapping[str, str]


class Difference(NamedTuple):
    topic: str
    setting: str
    is_now: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.is_now}, wanted {self.wanted}"


def log_topic(name: str, partitions: int, settings: KafkaSettings) -> Topic:
    """Unlimited retention: only ``truncate_below`` removes from it (rule 8)."""
    return Topic(
        name,
        partitions,
        settings.replication_factor,
        {
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "max.message.bytes": str(MESSAGE_BYTES_MAX),
            **_durable(settings),
        },
    )


def meta(name: str, settings: KafkaSettings) -> Topic:
    return Topic(
        name,
        1,
        settings.replication_factor,
        {
            "cleanup.policy": "compact",
            "segment.bytes": str(META_SEGMENT_BYTES),
            "segment.ms": str(META_SEGMENT_MS),
            "min.cleanable.dirty.ratio": "0.1",
            **_durable(settings),
        },
    )


def _durable(settings: KafkaSettings) -> dict[str, str]:
    wanted = {
        "min.insync.replicas": str(settings.min_insync_replicas),
        "unclean.leader.election.enable": "false",
    }
    return wanted | ({"flush.messages": "1"} if settings.durability == FLUSH else {})


def wanted(
    there: Collection[str], settings: KafkaSettings, partitions: int, copied: Iterable[str]
) -> list[Topic]:
    """Of all topics of an IDC: those that it makes at its first start, and as they must be those
    of later incarnations and of relays that are ``there``. ``copied``: the other IDCs whose logs
    MirrorMaker 2 copies here. Pure."""
    prefix = settings.prefix
    logs = [f"{prefix}.log.", *(f"{other}.{prefix}.log." for other in copied)]
    found = []
    for start in logs:
        found += _numbered(there, re.escape(start)) or [f"{start}1"]
    found += _numbered(there, re.escape(f"{prefix}.relay.") + r"[^.]+\.")
    return [
        meta(meta_topic(prefix), settings),
        *(log_topic(name, partitions, settings) for name in found),
    ]


def _numbered(names: Iterable[str], start: str) -> list[str]:
    pattern = re.compile(f"{start}[0-9]+")
    return sorted(name for name in names if pattern.fullmatch(name))


def plan(wanted: Iterable[Topic], described: Mapping[str, Topic]) -> list[Difference]:
    """How topics that exist differ from what is wanted. Pure. Missing ones are no difference."""
    found: list[Difference] = []
    for topic in wanted:
        now = described.get(topic.name)
        if now is None:
            continue
        pairs = [
            ("partitions", str(now.partitions), str(topic.partitions)),
            ("replication.factor", str(now.replication_factor), str(topic.replication_factor)),
            *(
                (name, now.settings.get(name, "unset"), value)
                for name, value in topic.settings.items()
            ),
        ]
        found += [
            Difference(topic.name, name, is_now, value)
            for name, is_now, value in pairs
            if is_now != value
        ]
    return found


async def create(cluster: Cluster, topics: Iterable[Topic]) -> None:
    """Those that are missing. Raises Unavailable."""
    rows: list[tuple[object, ...]] = [
        (topic.name, topic.partitions, topic.replication_factor, [], list(topic.settings.items()))
        for topic in topics
    ]
    if not rows:
        return
    wait_ms = int(cluster.settings.deadline_s * 1000)
    request = CreateTopicsRequest(rows, wait_ms, False)
    reply = await cluster.ask(request, controller=True)
    for name, code, *rest in reply.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            error = for_code(code)()
            why = f"create the topic {name}" + (f" ({rest[0]})" if rest and rest[0] else "")
            raise cluster.translated(error, why)


async def describe(cluster: Cluster, names: Iterable[str]) -> dict[str, Topic]:
    """Those of them that exist. Raises Unavailable."""
    shapes = await cluster.shapes(list(names))
    if not shapes:
        return {}
    request = DescribeConfigsRequest([(_TOPIC_RESOURCE, name, None) for name in shapes])
    reply = await cluster.ask(request)
    found: dict[str, Topic] = {}
    for code, _, _, name, entries in reply.resources:
        cluster.check(code, f"describe the topic {name}")
        settings = {entry[0]: entry[1] or "" for entry in entries}
        found[name] = Topic(name, *shapes[name], settings)
    return found


async def ensure(cluster: Cluster, topics: Iterable[Topic]) -> list[Difference]:
    """Make what is missing; returns how the others differ. Raises Unavailable."""
    wanted = list(topics)
    described = await describe(cluster, [topic.name for topic in wanted])
    missing = [topic for topic in wanted if topic.name not in described]
    await create(cluster, missing)
    for topic in missing:
        for partition in range(topic.partitions):
            await _until_it_serves(cluster, At(topic.name, partition))
    for difference in (differences := plan(wanted, described)):
        if difference.setting == "partitions":
            raise Unavailable(f"{difference}: the number is fixed for the life of a region")
    return differences


async def _until_it_serves(cluster: Cluster, at: At) -> None:
    """A broker hears of a new topic a moment after the controller has made it. Raises
    Unavailable."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + cluster.settings.deadline_s
    while True:
        try:
            await cluster.bounds(at)
            return
        except NoTopic:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(_RETRY_S)
