"""Runs the program that looks at pictures, few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from imcore.errors import Unavailable
from services.media.words import Looked, Picture

log = logging.getLogger("im.media")

AT_ONCE = 2
TIME_S = 15.0  # on the clock, should the program wait for something
THUMBNAIL_BYTES_MAX = 1 << 20
PROGRAM = Path(__file__).with_name("picture.py")


def available() -> bool:
    """Whether the extra `media` is installed."""
    return find_spec("PIL") is not None


class Pictures:
    def __init__(self) -> None:
        self._room = asyncio.Semaphore(AT_ONCE)

    async def look(self, read: Callable[[], Awaitable[bytes]]) -> Looked | None:
        """None: no picture that can be shown. Raises Unavailable while no program can be started;
        passes on what ``read`` raises."""
        async with self._room:
            data = await read()
            try:
                # -I: it finds nothing but what is installed. Its only words are its answer's.
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-I", str(PROGRAM),
                    stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL, env={"PATH": os.environ.get("PATH", "")},
                )  # fmt: skip
            except OSError as error:  # no process, memory or file descriptor is left
                raise Unavailable(f"no program can be started: {error.strerror}") from error
            try:
                async with asyncio.timeout(TIME_S):
                    said, _ = await process.communicate(data)
            except (TimeoutError, OSError):
                log.warning("a picture took too long to look at")
                return None
            finally:
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        if process.returncode != 0:
            return None
        head, _, thumbnail = said.partition(b"\n")
        try:
            picture = Picture.from_json(head)
        except ValueError:
            return None
        if not thumbnail or len(thumbnail) > THUMBNAIL_BYTES_MAX:
            return None
        return Looked(picture, thumbnail)
