"""Listens for clients, and takes them in no faster than it gets on with those it has taken.

asyncio's own servers accept whatever has come and begin a TLS handshake with each. When thousands
come at once every handshake takes longer than a client waits, and all of the work is done for
clients that have gone. Here a few are taken in each turn of the loop, so that the work which has
been begun comes first; the others stand in the kernel's queue, which costs nothing, and beyond that
they find nobody and come again later. A client that is slow with its handshake holds up nobody, nor
do as many as somebody opens: once all places are taken, who has taken long gives up his.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Protocol

log = logging.getLogger("im.listener")

PER_TURN = 8
# At some 0.3 to 1 ms each, whoever gets into the queue is through it before a client gives up.
BACKLOG = 512
HANDSHAKES_MAX = 5_000  # that wait for slow clients
LONG_S = 1.0  # for a handshake while others wait for its place
_PAUSE_S = 0.1  # where a connection cannot be accepted: too many open files


class Listening(Protocol):
    """What a server needs of it; a simulation brings its own."""

    async def start(self, host: str, port: int) -> int:
        """Returns the port (for 0). Raises OSError when the address is taken."""
        ...

    async def stop(self) -> None:
        """Connections that stand stay; those that shake hands are ended."""
        ...


Factory = Callable[[], asyncio.BaseProtocol]
Listen = Callable[[Factory, ssl.SSLContext | None, float, float], Listening]


class Listener:
    """``factory`` makes the protocol of a connection; no ``tls``: plain TCP. ``inherited``: sockets
    of a predecessor, which listen already; where they do is then not asked again."""

    def __init__(
        self,
        factory: Factory,
        tls: ssl.SSLContext | None,
        handshake_timeout_s: float,
        shutdown_timeout_s: float,
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        self._factory = factory
        self._tls = tls
        self._timeouts = (
            {}
            if tls is None
            else {
                "ssl_handshake_timeout": handshake_timeout_s,
                "ssl_shutdown_timeout": shutdown_timeout_s,
            }
        )
        self._shaking: dict[asyncio.Task[None], float] = {}  # since when; the first one longest
        self._ended = asyncio.Event()
        self._sockets = list(inherited)
        self._accepting: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> int:
        if not self._sockets:
            await self._bind(host, port)
        self._accepting = [asyncio.create_task(self._accept(each)) for each in self._sockets]
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    async def _bind(self, host: str, port: int) -> None:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        try:
            for family, kind, proto, _, address in dict.fromkeys(found):  # a name may have several
                self._listen(socket.socket(family, kind, proto), address)
        except BaseException:
            for listening in self._sockets:
                listening.close()
            raise

    def _listen(self, listening: socket.socket, address: tuple[Any, ...]) -> None:
        self._sockets.append(listening)
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listening.family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)

    async def release(self) -> list[socket.socket]:
        """Accept nothing more. Its sockets go on listening: who comes waits in their queues."""
        for accepting in self._accepting:
            accepting.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        return self._sockets

    async def stop(self) -> None:
        for listening in await self.release():
            listening.close()
        shaking = list(self._shaking)
        for task in shaking:
            task.cancel()
        await asyncio.gather(*shaking, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for taken in itertools.count(1):
            if taken % PER_TURN == 0:
                await asyncio.sleep(0)
            await self._room()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.warning("no connection can be accepted: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            if len(self._shaking) >= HANDSHAKES_MAX:
                longest = next(iter(self._shaking))
                del self._shaking[longest]
                longest.cancel()
            task = loop.create_task(self._shake(accepted))
            self._shaking[task] = loop.time()
            task.add_done_callback(self._shaken)

    async def _room(self) -> None:
        """Wait until one more may be taken, be it in the place of who has had time enough."""
        loop = asyncio.get_running_loop()
        while len(self._shaking) >= HANDSHAKES_MAX:
            wait_s = next(iter(self._shaking.values())) + LONG_S - loop.time()
            if wait_s <= 0:
                return
            self._ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ended.wait()

    def _shaken(self, task: asyncio.Task[None]) -> None:
        self._shaking.pop(task, None)
        self._ended.set()

    async def _shake(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            # What goes wrong here is the client's: it left, or speaks no TLS, or trusts nobody.
            with contextlib.suppress(OSError, TimeoutError):
                await loop.connect_accepted_socket(
                    self._factory, accepted, ssl=self._tls, **self._timeouts
                )
        except BaseException:
            accepted.close()
            raise
