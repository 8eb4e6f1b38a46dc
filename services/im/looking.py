"""Requests that look at many rows, such as who has read a message, or a search.

Messages must not wait for them: for one user so many rows are looked at in a second, and of all
users together one at a time looks at a few, and rests as long as that took.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from imcore.bucket import Buckets
from imcore.errors import Overloaded, retry_after_ms
from imcore.runtime import Clock

ROWS_PER_S = 5_000.0  # of one user
BURST = 20_000.0
_UNDER_WAY_MAX = 64  # what waits longer than its client does is work for nobody
_FULL_RETRY_MS = 1_000


class Looking:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._of_user = Buckets(ROWS_PER_S, BURST)
        self._turn = asyncio.Lock()
        self._under_way = 0

    @contextlib.contextmanager
    def begun(self, uid: str, rows: int) -> Iterator[None]:
        """A request that may look at so many. Raises Overloaded."""
        if self._under_way >= _UNDER_WAY_MAX:
            raise Overloaded("too many look for something at once", _FULL_RETRY_MS)
        if wait_s := self._of_user.take(uid, self._clock.now(), rows):
            message = "this user looks for too much at once"
            raise Overloaded(message, retry_after_ms(wait_s))
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For a few rows."""
        async with self._turn:
            began = self._clock.now()
            yield
            await asyncio.sleep(self._clock.now() - began)
