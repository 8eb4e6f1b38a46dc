"""How far MirrorMaker's copies in this IDC are behind the logs of the others.

Two views, because each is blind where the other sees:

- Positions. MirrorMaker writes the source offset of what it has copied into a topic beside the
  copies, in the same transaction. With the source's own end that is the number of records behind;
  it needs the source to answer. What was cut at the source before it was copied is not behind.
- Heartbeats. Each IDC's MirrorMaker writes one every few seconds into its own cluster, for each of
  its flows, and copies those of the others. The age of the own one tells whether the flow's worker
  lives, that of a copied one how late copies arrive; it needs the source's MirrorMaker to live,
  and the clocks to agree. (Strimzi makes no heartbeats: then there is no age.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import ConsumerRecord

from imcore.errors import ImError
from imcore.runtime import Clock
from services.engines.kafka.cluster import READ, At, Cluster
from services.engines.kafka.heartbeats import HEARTBEATS, TAIL_RECORDS, Heartbeats
from services.engines.kafka.topic_tail import TopicTail, read_on

PERIOD_S = 1.0
TOPICS_S = 8.0  # between looks for topics of a source
MEASURE_S = 5.0  # of one flow, whatever its calls take
_EARLIEST, _LATEST = -2, -1


def positions_topic(source: str) -> str:
    """Where a MirrorMaker in dedicated mode keeps its positions."""
    return f"mm2-offsets.{source}.internal"


@dataclass(slots=True)
class _Flow:
    source: str
    positions: TopicTail
    heartbeats: TopicTail
    copied: dict[tuple[str, int], int] = field(default_factory=dict)  # next source offset
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    starts: dict[tuple[str, int], int] = field(default_factory=dict)
    heartbeat_ms: int | None = None  # when the last one that was copied was made
    measured_at: float | None = None  # when all of it was answered
    problem: str = "not measured yet"
    logs: dict[str, int] = field(default_factory=dict)  # of the source: partitions by topic
    again_at: float = 0.0  # when they are looked for again


class MirrorLag:
    """``own``, ``sources``: clusters for this use alone (a slow source must not hold up others'
    requests). ``positions``: source -> the topic with its positions, where it is another than in
    dedicated mode."""

    def __init__(
        self,
        own: Cluster,
        sources: Mapping[str, Cluster],
        idc: str,
        clock: Clock,
        positions: Mapping[str, str] | None = None,
    ) -> None:
        self._own = own
        self._sources = sources
        self._clock = clock
        self._log = re.compile(re.escape(own.settings.prefix) + r"\.log\.[0-9]+")
        named = positions or {}
        self._flows = {
            source: _Flow(
                source,
                TopicTail(At(named.get(source, positions_topic(source)), 0), None),
                TopicTail(At(f"{source}.{HEARTBEATS}", 0), TAIL_RECORDS),
            )
            for source in sources
        }
        self._workers = Heartbeats(own, idc)

    async def run(self, period_s: float = PERIOD_S) -> None:
        """Until cancelled; no fault of a cluster ends it."""
        while True:
            await self.measure()
            await asyncio.sleep(period_s)

    def figures(self) -> dict[str, dict[str, Any]]:
        """By source: ``partitions`` -> ``behind`` (records), ``behind`` (their sum; None: never
        measured), ``heartbeat_age_s`` and ``worker_age_s`` (None: there is none),
        ``measured_s_ago``, ``problem`` (a sentence; empty: none). While there is a problem the
        figures are those of the last look that succeeded."""
        return {source: self._figures(flow) for source, flow in self._flows.items()}

    def _figures(self, flow: _Flow) -> dict[str, Any]:
        partitions: dict[int, int] = {}
        for (topic, partition), end in flow.ends.items():
            begin = flow.starts.get((topic, partition), 0)
            behind = max(0, end - max(begin, flow.copied.get((topic, partition), 0)))
            partitions[partition] = partitions.get(partition, 0) + behind
        measured = flow.measured_at
        return {
            "partitions": {number: {"behind": partitions[number]} for number in sorted(partitions)},
            "behind": None if measured is None else sum(partitions.values()),
            "heartbeat_age_s": self._age_s(flow.heartbeat_ms),
            "worker_age_s": self._age_s(self._workers.last_ms.get(flow.source)),
            "measured_s_ago": None if measured is None else round(self._clock.now() - measured, 1),
            "problem": flow.problem,
        }

    def _age_s(self, wall_ms: int | None) -> float | None:
        return None if wall_ms is None else max(0, self._clock.wall_ms() - wall_ms) / 1000

    # ------------------------------------------------------------------------- one look

    async def measure(self) -> None:
        """All flows, one look each. Never raises."""
        await asyncio.gather(self._look_at_workers(), *map(self._look, self._flows.values()))

    async def _look(self, flow: _Flow) -> None:
        try:
            async with asyncio.timeout(MEASURE_S):
                # The end first: what is copied meanwhile must not look like more than there is.
                ends = await self._offsets(flow, await self._logs_there(flow), _LATEST)
                for record in await read_on(self._own, flow.positions):
                    _note_position(flow, record)
                for record in await read_on(self._own, flow.heartbeats):
                    flow.heartbeat_ms = record.timestamp
        except TimeoutError:
            flow.again_at = 0.0
            flow.problem = f"the flow from {flow.source} was not measured within {MEASURE_S:g} s"
        except (ImError, LookupError) as error:
            flow.again_at = 0.0
            flow.problem = str(error)
        else:
            flow.ends, flow.problem, flow.measured_at = ends, "", self._clock.now()

    async def _look_at_workers(self) -> None:
        """What cannot be read here is a problem of each flow too, and named there."""
        with contextlib.suppress(ImError, LookupError, TimeoutError):
            async with asyncio.timeout(MEASURE_S):
                await self._workers.look()

    async def _logs_there(self, flow: _Flow) -> dict[str, int]:
        """Partitions by topic. A new incarnation, and a cut, is seen a moment later: to name all
        topics of a cluster is most of what a look costs its broker. Raises Unavailable."""
        if self._clock.now() >= flow.again_at:
            cluster = self._sources[flow.source]
            logs = [topic for topic in await cluster.look(None) if self._log.fullmatch(topic)]
            found = await cluster.shapes(logs)
            flow.logs = {topic: partitions for topic, (partitions, _) in found.items()}
            flow.starts = await self._offsets(flow, flow.logs, _EARLIEST)
            flow.again_at = self._clock.now() + (TOPICS_S if found else 0.0)
        return flow.logs

    async def _offsets(
        self, flow: _Flow, logs: Mapping[str, int], when: int
    ) -> dict[tuple[str, int], int]:
        """Of the first record of each log there, or behind the last committed one. Raises
        Unavailable."""
        cluster = self._sources[flow.source]
        asked: dict[int, dict[str, list[tuple[int, int]]]] = {}
        for topic, partitions in logs.items():
            for partition in range(partitions):
                node = await cluster.leader(At(topic, partition))
                asked.setdefault(node, {}).setdefault(topic, []).append((partition, when))
        found = {}
        for node, topics in asked.items():
            request = OffsetRequest(-1, READ_COMMITTED, list(topics.items()))
            reply = await cluster.call(node, request, READ)
            for topic, rows in reply.topics:
                for partition, code, *rest in rows:
                    cluster.moved(At(topic, partition), code)
                    cluster.check(code, f"tell the bounds of {topic} partition {partition}")
                    found[topic, partition] = int(rest[-1])
        return found


# ------------------------------------------------------------------- what MirrorMaker writes


def _note_position(flow: _Flow, record: ConsumerRecord[bytes, bytes]) -> None:
    """``["...MirrorSourceConnector", {"cluster", "topic", "partition"}]`` -> ``{"offset"}`` of the
    last copied record; no value: the position was taken back."""
    try:
        connector, place = json.loads(record.key or b"null")
        if not connector.endswith("MirrorSourceConnector") or place["cluster"] != flow.source:
            return
        key = (str(place["topic"]), int(place["partition"]))
        if record.value is None:
            flow.copied.pop(key, None)
        else:
            flow.copied[key] = int(json.loads(record.value)["offset"]) + 1
    except (ValueError, TypeError, KeyError, AttributeError):
        return  # another connector's
