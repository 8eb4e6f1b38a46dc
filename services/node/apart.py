"""What processes beside the core, fronts and ipconfs, share: they run until told to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any


async def until_stopped(
    stopping: asyncio.Event, works: Sequence[Callable[[], Coroutine[Any, Any, None]]]
) -> None:
    """All of them, until ``stopping``, or until one ends; raises what that raised."""
    tasks = [asyncio.ensure_future(work()) for work in works]
    told = asyncio.ensure_future(stopping.wait())
    done, left = await asyncio.wait({*tasks, told}, return_when=asyncio.FIRST_COMPLETED)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    for task in done:
        task.result()
