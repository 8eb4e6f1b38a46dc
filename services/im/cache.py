"""Conversations in memory, read from the KV once however many ask at the same time.

A cached conversation is never changed: the applier changes copies, and publishes them once they are
committed. So whoever holds one across an await holds a state that was true as a whole; who decides
upon it (which seq is next) asks for it and decides in the same turn.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from imcore.words import is_group
from services.im import keys
from services.im.conversation import Conversation
from services.im.pair import pair_of
from services.ports import Kv

_SCANNED = 1_000  # members of a group, in one read


@dataclass(slots=True)
class Found:
    """How often a conversation was asked for, by where it was."""

    memory: int = 0
    shared: int = 0  # a read of the KV that was under way
    kv: int = 0
    absent: int = 0  # read, and the KV has nothing of it: what penetrates a cache for nothing


class ConversationCache:
    """Of one partition. Only the applier publishes, trims and clears. At most ``keep`` are kept,
    and ``members`` of all their groups: one takes 250 bytes, so a group of 10,000 as much as
    thousands of direct conversations."""

    def __init__(self, kv: Kv, partition: int, keep: int = 20_000, members: int = 500_000) -> None:
        self._kv = kv
        self._partition = partition
        self._keep = keep
        self._members_kept = members
        self._members_here = 0
        self._loaded: OrderedDict[str, Conversation] = OrderedDict()
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._cleared = 0
        self.found = Found()
        self._whole = asyncio.Event()
        self._whole.set()

    def get(self, name: str) -> Conversation | None:
        return self._loaded.get(name) if self._whole.is_set() else None

    async def load(self, name: str) -> Conversation:
        """As it is in the turn in which this returns. Raises Unavailable."""
        asked = False
        while True:
            await self._whole.wait()
            loaded = self.get(name)
            if loaded is not None:
                self.found.memory += not asked
                return loaded
            asked = True
            await self._read_in(name)

    async def load_all(self, names: Iterable[str]) -> dict[str, Conversation]:
        """For the applier, which also reads what is withheld."""
        found: dict[str, Conversation] = {}
        for name in names:
            self.found.memory += name in self._loaded
            while (loaded := self._loaded.get(name)) is None:
                await self._read_in(name)
            found[name] = loaded
        return found

    def publish(self, changed: Mapping[str, Conversation]) -> None:
        """These are committed. The applier had loaded each of them, so no read of an earlier state
        can be under way."""
        for name, conversation in changed.items():
            self._put(name, conversation)
            self._loaded.move_to_end(name)

    def _put(self, name: str, conversation: Conversation) -> None:
        former = self._loaded.get(name)
        self._members_here += len(conversation.events) - (len(former.events) if former else 0)
        self._loaded[name] = conversation

    @property
    def withheld(self) -> bool:
        return not self._whole.is_set()

    def withhold(self) -> None:
        """The partition is folded again: until ``release`` heads are lower than what was given out,
        and whoever built upon them would give the same identity out twice."""
        self._whole.clear()

    def release(self) -> None:
        self._whole.set()

    async def whole(self) -> None:
        """Wait until nothing is withheld."""
        await self._whole.wait()

    async def _read_in(self, name: str) -> None:
        reading = self._reading.get(name)
        if reading is not None:
            self.found.shared += 1
        else:
            reading = self._reading[name] = asyncio.ensure_future(self._read(name))
            reading.add_done_callback(_looked_at)
        await asyncio.shield(reading)

    async def _read(self, name: str) -> None:
        wanted = [keys.heads(self._partition, name)]
        both = pair_of(name)
        if group := is_group(name):
            wanted.append(keys.group(self._partition, name))
        elif both is not None:
            wanted.append(keys.friend(self._partition, *both))
        try:
            while True:
                cleared = self._cleared
                rows = await self._kv.get_many(wanted)
                members = await self._member_rows(name) if group else []
                if cleared == self._cleared:  # else these are rows of before a rebuild
                    break
            last = rows[-1] if len(rows) > 1 else None
            named, friends = (last, None) if group else (None, last)
            if members or any(row is not None for row in rows):
                self.found.kv += 1
            else:
                self.found.absent += 1
            read = Conversation.from_rows(name, rows[0], named, members, friends)
            if name not in self._loaded:
                self._put(name, read)
        finally:
            # In the same turn: who asks after a trim or a clear must not be given this read.
            del self._reading[name]

    async def _member_rows(self, name: str) -> list[tuple[str, bytes]]:
        """Uid and row of each. The applier changes none of them meanwhile: it would have to wait
        for this very read."""
        prefix = keys.group_members_prefix(self._partition, name)
        start, end = prefix, keys.prefix_end(prefix)
        found: list[tuple[str, bytes]] = []
        while True:
            rows = await self._kv.scan(start, end, _SCANNED)
            found += [(key[len(prefix) :].decode(), value) for key, value in rows]
            if len(rows) < _SCANNED:
                return found
            start = rows[-1][0] + b"\0"
            await asyncio.sleep(0)  # a KV need not suspend, and a group may have 10,000

    def trim(self) -> None:
        """Forget those that were read or written to longest ago; called by the applier between
        batches."""
        while len(self._loaded) > self._keep or (
            self._members_here > self._members_kept and len(self._loaded) > 1
        ):
            _, idle = self._loaded.popitem(last=False)
            self._members_here -= len(idle.events)

    def clear(self) -> None:
        self._loaded.clear()
        self._members_here = 0
        self._cleared += 1


def _looked_at(reading: asyncio.Task[None]) -> None:
    """Nobody may be left that waits for it, and then nobody else asks how it ended."""
    if not reading.cancelled():
        reading.exception()
