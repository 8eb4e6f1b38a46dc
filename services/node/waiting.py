"""For engines that do not answer yet."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from imcore.errors import NotTrusted, OutcomeUnknown, Unavailable

log = logging.getLogger("im.engines")
T = TypeVar("T")

STORE_START_S = 60.0
RETRY_S = 0.5


async def when_it_answers(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """An IDC can do nothing without its logs and its KV. Raises what came last, and NotTrusted at
    once."""
    deadline = asyncio.get_running_loop().time() + STORE_START_S
    said = ""
    while True:
        try:
            return await attempt()
        except NotTrusted:
            raise
        except (Unavailable, OutcomeUnknown) as error:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            if str(error) != said:
                log.warning("waiting for %s: %s", what, error)
            said = str(error)
        await asyncio.sleep(RETRY_S)
