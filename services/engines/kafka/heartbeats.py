"""The signs of life that the MirrorMaker 2 of an IDC writes into its own Kafka, one every
few seconds for each flow. Only they tell that it copies: its process may live on for nothing."""

from __future__ import annotations

import struct

from services.engines.kafka.cluster import At, Cluster
from services.engines.kafka.topic_tail import TopicTail, read_on

HEARTBEATS = "heartbeats"  # MirrorMaker 2's own topic
TAIL_RECORDS = 100  # looked at when first read


class Heartbeats:
    """Of the flows into ``idc``, whose Kafka ``own`` is. ``last_ms``: when the last one was made
    (wall time of the MirrorMaker), by source; none that was not heard of."""

    def __init__(self, own: Cluster, idc: str) -> None:
        self._own = own
        self._idc = idc
        self._tail = TopicTail(At(HEARTBEATS, 0), TAIL_RECORDS)
        self.last_ms: dict[str, int] = {}

    async def look(self) -> None:
        """Raises Unavailable, NotTrusted, Damaged."""
        for record in await read_on(self._own, self._tail):
            names = _flow(record.key)
            if names is not None and names[1] == self._idc:
                self.last_ms[names[0]] = record.timestamp


def _flow(key: bytes | None) -> tuple[str, str] | None:
    """(source, target): two strings, each behind its length."""
    names, rest = [], key or b""
    while len(rest) >= 2:
        (size,) = struct.unpack_from(">h", rest)
        names.append(rest[2 : 2 + size].decode(errors="replace"))
        rest = rest[2 + max(0, size) :]
    return (names[0], names[1]) if len(names) == 2 else None
