"""The event loop of commands that run hundreds of clients in one process."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop


def new_event_loop() -> asyncio.AbstractEventLoop:
    loop = uvloop.new_event_loop()
    loop.set_exception_handler(_report)
    return loop


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """uvloop reports a fatal error when TLS has something left to say on a socket that a killed
    peer has closed. The connection is lost either way, and its owner is told so."""
    error = context.get("exception")
    if isinstance(error, RuntimeError) and "the handler is closed" in str(error):
        return
    loop.default_exception_handler(context)
