"""Start a whole deployment and wait until it serves, or leave nothing of it behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from imcore.errors import ImError
from imctl import admin
from imctl.errors import Failed
from imctl.target.local import LINKPROXY, Local

READY_S = 60.0
POLL_S = 0.1

Progress = Callable[[str, bool], None]  # (unit, is it serving)


async def wait_serving(
    target: Local, names: Sequence[str], progress: Progress, timeout_s: float = READY_S
) -> None:
    """Raises Failed when a unit ends, or does not serve in time."""
    waiting = [name for name in names if name in target.names() and name != LINKPROXY]
    try:
        async with asyncio.timeout(timeout_s):
            while waiting:
                target.check_alive(waiting)
                found = await admin.statuses(target, waiting, timeout_s=1.0)
                for name, document in found.items():
                    if serving(document):
                        waiting.remove(name)
                        progress(name, True)
                if waiting:
                    await asyncio.sleep(POLL_S)
    except TimeoutError:
        logs = ", ".join(str(target.log_file(name)) for name in waiting)
        raise Failed(
            f"{', '.join(waiting)} did not serve within {timeout_s:g} s; see {logs}"
        ) from None


def serving(document: dict[str, Any] | ImError) -> bool:
    return not isinstance(document, ImError) and bool(document.get("serving"))


def bring_up(target: Local, progress: Progress, wait: bool = True) -> None:
    """All units. Whatever goes wrong (Ctrl-C too), nothing is left running.

    All of it runs in one loop, where Ctrl-C cancels at the next await and breaks into nothing."""
    with interruptible():
        try:
            asyncio.run(_bring_up(target, progress, wait))
        except BaseException:
            with deaf():
                target.stop()
            raise


async def _bring_up(target: Local, progress: Progress, wait: bool) -> None:
    await _bring_engines_up(target, progress)
    names = target.names()
    for name in names:
        progress(name, False)
        target.start([name])
        await asyncio.sleep(0)
        if name == LINKPROXY:
            progress(name, True)
    if wait:
        await wait_serving(target, names, progress)


async def _bring_engines_up(target: Local, progress: Progress) -> None:
    """All at once: the IDCs wait for them anyway."""
    waiting = target.engine_names()
    for name in waiting:
        progress(name, False)
        target.start([name])
    try:
        async with asyncio.timeout(READY_S):
            while waiting:
                for name in waiting[:]:
                    if await asyncio.to_thread(target.engine_serves, name):
                        waiting.remove(name)
                        progress(name, True)
                await asyncio.sleep(POLL_S / 2)
    except TimeoutError:
        logs = ", ".join(str(target.log_file(name)) for name in waiting)
        raise Failed(f"{', '.join(waiting)} did not serve in time; see {logs}") from None


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the program as Ctrl-C does, so that clean-ups run. By way of SIGINT:
    while a loop runs, asyncio cancels its task; an exception out of a handler would hit any line,
    a gRPC callback too."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    with _handling((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextmanager
def deaf() -> Iterator[None]:
    """A second Ctrl-C does not interrupt the clean-up of the first."""
    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN):
        yield


@contextmanager
def _handling(signums: Sequence[signal.Signals], handler: Any) -> Iterator[None]:
    before = {signum: signal.signal(signum, handler) for signum in signums}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
