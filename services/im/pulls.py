"""Pulls, from what is nearest: the tails in memory, a read that is under way, the KV."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.words import Origin, Vector
from services.im import reads
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.im.recent import Page, Recent
from services.ports import Kv


@dataclass(slots=True)
class PullCounters:
    memory: int = 0
    shared: int = 0  # waited for what another one read
    kv: int = 0


class Pulls:
    def __init__(self, kv: Kv, region_keys: RegionKeys) -> None:
        self._kv = kv
        self._keys = region_keys
        self.recent = Recent()
        self.counters = PullCounters()
        # By what would be read; a conversation that is shown never changes, so it says of when.
        self._reading: dict[tuple[object, ...], asyncio.Future[Page]] = {}

    def folded(self, name: str, origin: Origin, built: Sequence[pb.Entry], heads: Vector) -> None:
        """They are committed, and shown by now."""
        self.recent.folded(name, origin, built, heads, self._keys.current)

    async def page(
        self, partition: Partition, conversation: Conversation, have: Vector, limit: int
    ) -> Page:
        """See ``reads.pull``."""
        name, heads = conversation.id, conversation.heads
        limit = reads.bounded(limit)
        found = self.recent.page(name, have, heads, limit, reads.PAGE_BYTES_MAX, self._keys.current)
        if found is not None:
            self.counters.memory += 1
            return found
        wanted = (conversation, tuple(sorted(have.items())), limit)
        while (reading := self._reading.get(wanted)) is not None:
            await asyncio.wait([reading])
            if not reading.cancelled():
                self.counters.shared += 1
                return reading.result()
        self.counters.kv += 1
        reading = self._reading[wanted] = asyncio.get_running_loop().create_future()
        try:
            page = await self._read(partition, conversation, have, limit)
            reading.set_result(page)
            return page
        except Exception as error:
            reading.set_exception(error)
            reading.exception()  # nobody may wait for it
            raise
        finally:
            del self._reading[wanted]
            reading.cancel()  # unless it is done: whoever waits reads by himself

    async def _read(
        self, partition: Partition, conversation: Conversation, have: Vector, limit: int
    ) -> Page:
        key_id = self._keys.current
        found, more = await reads.pull(
            self._kv, partition.number, conversation, have, limit, self._keys
        )
        # Of this very state, or what was folded meanwhile would be missing, or shown as it was.
        if not more and partition.conversations.get(conversation.id) is conversation:
            self.recent.read(conversation.id, have, found, conversation.heads, key_id)
        return found, more
