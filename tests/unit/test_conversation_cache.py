"""Which conversations stay in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from services.im.cache import ConversationCache
from services.ports import Kv


class Empty:
    def __init__(self) -> None:
        self.read: list[bytes] = []

    async def get_many(self, wanted: Sequence[bytes]) -> list[None]:
        self.read += wanted
        return [None] * len(wanted)


async def test_what_is_written_to_stays_and_what_nobody_used_goes() -> None:
    kv = Empty()
    cache = ConversationCache(cast(Kv, kv), 0, keep=2)
    busy, idle = "d:ann:bob", "d:ann:cid"
    first = await cache.load(busy)
    await cache.load(idle)
    cache.publish({busy: first})
    await cache.load("d:ann:dan")
    cache.trim()
    assert cache.get(busy) is first
    assert cache.get(idle) is None
