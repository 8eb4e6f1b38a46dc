"""What waits to be written to a stream: all of one turn of the loop leaves as one batch."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, Protocol, TypeVar

BATCH_BYTES = 2 << 20  # of one message on the stream; one item may be as large as a frame
WAITING_BYTES_MAX = 64 << 20


class Item(Protocol):
    def ByteSize(self) -> int: ...


T = TypeVar("T", bound=Item)


class Pipe(Generic[T]):
    """Bounded: when the other side does not read, the pipe closes rather than fill the memory, and
    the other side begins again with a new one. What is put into a closed one is dropped."""

    def __init__(self, waiting_bytes_max: int = WAITING_BYTES_MAX) -> None:
        self._max = waiting_bytes_max
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self.closed = False
        self.overflowed = False

    def put(self, item: T) -> None:
        if self.closed:
            return
        size = item.ByteSize()
        self._items.append((item, size))
        self._bytes += size
        self._wake.set()
        if self._bytes > self._max:
            self.overflowed = True
            self.close()

    def close(self) -> None:
        """What waits is dropped."""
        self.closed = True
        self._items.clear()
        self._wake.set()

    async def batches(self) -> AsyncIterator[list[T]]:
        """Until it is closed."""
        while not self.closed:
            await self._wake.wait()
            self._wake.clear()
            while self._items:
                yield self._take()

    def _take(self) -> list[T]:
        taken: list[T] = []
        room = BATCH_BYTES
        while self._items and (not taken or self._items[0][1] <= room):
            item, size = self._items.popleft()
            taken.append(item)
            room -= size
            self._bytes -= size
        return taken
