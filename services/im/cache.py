"""Conversations in memory, read from the KV once however many ask at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable

from imcore.words import is_group
from services.im import keys
from services.im.conversation import Conversation
from services.ports import Kv


class ConversationCache:
    """Of one partition. The applier changes the cached objects in place; nobody else does."""

    def __init__(self, kv: Kv, partition: int, keep: int = 20_000) -> None:
        self._kv = kv
        self._partition = partition
        self._keep = keep
        self._loaded: OrderedDict[str, Conversation] = OrderedDict()
        self._loading: dict[str, asyncio.Future[Conversation]] = {}
        self._cleared = 0
        self._whole = asyncio.Event()
        self._whole.set()

    def get(self, name: str) -> Conversation | None:
        return self._loaded.get(name) if self._whole.is_set() else None

    async def load(self, name: str) -> Conversation:
        await self._whole.wait()
        return await self._load(name)

    async def _load(self, name: str) -> Conversation:
        loaded = self._loaded.get(name)
        if loaded is not None:
            return loaded
        loading = self._loading.get(name)
        if loading is None:
            loading = asyncio.ensure_future(self._read(name))
            self._loading[name] = loading
            loading.add_done_callback(lambda _: self._loading.pop(name, None))
        return await asyncio.shield(loading)

    async def load_all(self, names: Iterable[str]) -> dict[str, Conversation]:
        """For the applier, which also reads what is withheld."""
        return {name: self._loaded.get(name) or await self._load(name) for name in names}

    @property
    def withheld(self) -> bool:
        return not self._whole.is_set()

    def withhold(self) -> None:
        """The partition is folded again: until ``release`` heads are lower than what was given out,
        and whoever built upon them would give the same identity out twice."""
        self._whole.clear()

    def release(self) -> None:
        self._whole.set()

    async def _read(self, name: str) -> Conversation:
        wanted = [keys.heads(self._partition, name)]
        if is_group(name):
            wanted.append(keys.group(self._partition, name))
        while True:
            cleared = self._cleared
            rows = await self._kv.get_many(wanted)
            if cleared == self._cleared:  # else these are rows of before a rebuild
                break
        conversation = Conversation.from_rows(name, rows[0], rows[1] if len(rows) > 1 else None)
        return self._loaded.setdefault(name, conversation)

    def trim(self) -> None:
        """Forget the longest unused; called by the applier between batches, so never a changed
        conversation that is not committed."""
        while len(self._loaded) > self._keep:
            self._loaded.popitem(last=False)

    def clear(self) -> None:
        self._loaded.clear()
        self._cleared += 1
