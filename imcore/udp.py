"""A UDP socket on either event loop. Those of uvloop's own transports crash the process when one is
closed at the wrong moment (0.22); and what the kernel has no room for may be lost here, as anywhere
on the way, instead of being queued."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

PER_TURN = 64  # datagrams; others are to have their turn
_BYTES_MAX = 16_384
_RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
_ERRQUEUE = getattr(socket, "MSG_ERRQUEUE", 0)  # of Linux


class Udp:
    """``received``: a datagram and from where; ``failed``: what the network said of one that was
    sent, if ``told`` asks for that (Linux alone knows)."""

    def __init__(
        self,
        bound: socket.socket,
        received: Callable[[bytes, Any], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._socket = bound
        self._received = received
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.port: int = bound.getsockname()[1]
        self._loop.add_reader(bound, self._readable)

    def sendto(self, data: bytes, address: Any) -> None:
        if self._closed:
            return
        try:
            self._socket.sendto(data, address)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._loop.call_soon(self._fails, error)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _readable(self) -> None:
        for _ in range(PER_TURN):
            if self._closed:
                return
            try:
                data, address = self._socket.recvfrom(_BYTES_MAX)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._fails(error)
                # uvloop takes an error for the end of the socket.
                self._loop.call_soon(self._read_on)
                return
            self._received(data, address)

    def _read_on(self) -> None:
        if not self._closed:
            self._loop.remove_reader(self._socket)
            self._loop.add_reader(self._socket, self._readable)

    def _fails(self, error: OSError) -> None:
        if self._closed:
            return
        with contextlib.suppress(OSError):
            while _ERRQUEUE:  # else the loop would be told of it for ever
                self._socket.recvmsg(1, 512, _ERRQUEUE)
        self._failed(error)


def bind(family: int, address: Any, told: bool = False) -> socket.socket:
    """Raises OSError."""
    bound = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bound.setblocking(False)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if told and _ERRQUEUE:
            bound.setsockopt(*_RECVERR[socket.AddressFamily(family)], 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
