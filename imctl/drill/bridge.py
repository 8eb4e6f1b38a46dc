"""One event loop in a thread of its own, for everything of a drill that is asynchronous. The Chaos
Toolkit calls actions and probes from threads that block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from imctl.loop import new_event_loop

T = TypeVar("T")
LOOK_S = 0.1


class Interrupted(Exception):
    """What was waited for is no longer wanted; the message says why."""


class Bridge:
    """``call`` from any thread but its own."""

    def __init__(self) -> None:
        self._loop = new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="drill", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T], interrupted: Callable[[], str] = lambda: "") -> T:
        """Its result, or its error. Once ``interrupted`` says why, or when this thread is
        interrupted itself (Ctrl-C), the work is cancelled. Raises Interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                try:
                    return future.result(LOOK_S)
                except TimeoutError:
                    if future.done():  # the work's own
                        raise
                if why := interrupted():
                    raise Interrupted(why)
        except CancelledError as error:
            raise Interrupted("the drill has ended") from error
        finally:
            future.cancel()

    def close(self) -> None:
        """Ends what still runs in it."""

        async def end() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._loop.shutdown_asyncgens()
            await self._loop.shutdown_default_executor()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
