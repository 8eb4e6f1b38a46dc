"""Which conversations stay in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from imcore.words import Origin, Place
from services.im import keys
from services.im.cache import ConversationCache, Found
from services.im.conversation import Conversation
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


async def test_where_each_was_is_counted() -> None:
    rows: dict[bytes, bytes] = {}

    class Some(Empty):
        async def get_many(self, wanted: Sequence[bytes]) -> list[bytes | None]:  # type: ignore[override]
            await asyncio.sleep(0)
            return [rows.get(key) for key in wanted]

    cache = ConversationCache(cast(Kv, Some()), 0)
    rows[keys.heads(0, "d:ann:bob")] = b""
    await asyncio.gather(*(cache.load("d:ann:bob") for _ in range(3)))
    await cache.load("d:ann:bob")
    await cache.load_all(["d:ann:bob", "d:ann:cid"])
    assert cache.found == Found(memory=2, shared=2, kv=1, absent=1)


async def test_groups_weigh_as_much_as_they_have_members() -> None:
    cache = ConversationCache(cast(Kv, Empty()), 0, members=250)
    for number in range(5):
        group = Conversation(f"g:{number}")
        members = [(f"u{each}", True) for each in range(100)]
        group.set_members(Place(1, Origin("fra", 1), 1), members)
        cache.publish({group.id: group})
    await cache.load("d:ann:bob")
    cache.trim()
    assert [cache.get(f"g:{number}") is not None for number in range(5)] == [False] * 3 + [True] * 2
    assert cache.get("d:ann:bob") is not None
    cache.publish({"g:4": Conversation("g:4")})  # members are counted anew
    for number in (5, 6):
        other = Conversation(f"g:{number}")
        other.set_members(Place(1, Origin("fra", 1), 1), [(f"u{each}", True) for each in range(75)])
        cache.publish({other.id: other})
    cache.trim()
    assert cache.get("g:3") is not None
    cache.clear()
    assert cache._members_here == 0
