"""Batches that are committed and not yet read back: who reads one of them waits. No I/O.

A batch may be torn until it has been read back and made whole (redo.py). What a reader saw of it
meanwhile holds when it turns out to be whole, and is read again when it was not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.engines.tikv.layout import Meta


@dataclass(slots=True)
class _Doubt:
    batch: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    changed: bool = False


class Doubts:
    """At most one batch of a partition is in doubt."""

    def __init__(self) -> None:
        self._batches: dict[int, _Doubt] = {}

    def begin(self, partition: int, batch: int) -> None:
        """Before it can be seen; again with the same number does nothing."""
        doubt = self._batches.get(partition)
        if doubt is None or doubt.batch != batch:
            self.settle(partition, True)
            self._batches[partition] = _Doubt(batch)

    def settle(self, partition: int, changed: bool) -> None:
        """``changed``: something of it was written after it was first seen, or may have been."""
        doubt = self._batches.pop(partition, None)
        if doubt is not None:
            doubt.changed = changed
            doubt.over.set()

    async def hold(self, seen: Mapping[int, Meta]) -> bool:
        """Whether what was read beside these Metas holds; waits while that is not known."""
        holds = True
        for partition, meta in seen.items():
            doubt = self._batches.get(partition)
            if doubt is not None and doubt.batch == meta.batch:
                await doubt.over.wait()
                holds = holds and not doubt.changed
        return holds
