"""Whoever is told by a log of this process."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("im.log")


def guarded(callback: Callable[..., None], *arguments: object) -> None:
    try:
        callback(*arguments)
    except Exception:
        # One caller's mistake must not take the others' acks with it.
        log.exception("a callback of the log failed")


class Subscribers:
    def __init__(self) -> None:
        self._callbacks: dict[object, Callable[[], None]] = {}

    def add(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Returns a function that takes it away again."""
        token = object()
        self._callbacks[token] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(token, None)

        return unsubscribe

    def tell(self) -> None:
        for callback in list(self._callbacks.values()):
            guarded(callback)
