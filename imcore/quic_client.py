"""Dials by QUIC. The socket is bound to no peer, so that the system may send from another address
once the old one is gone, and can be changed for another one under the connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from imcore.quic import Lost, QuicTransport, client_configuration, client_connection
from imcore.udp import Udp, bind

GOODBYE_S = 1.0


class QuicClient:
    """``connect`` makes the protocol, which is told of ``transport`` once it is connected."""

    def __init__(
        self, connect: Callable[[], asyncio.BaseProtocol], host: str, trusted: ssl.SSLContext
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.gone = asyncio.Event()
        self.on_gone: Callable[[], None] = lambda: None
        self._family = socket.AF_INET
        self._udp: Udp | None = None
        self._heard = 0  # datagrams
        self._refused_after = -1  # so many of them
        self._host = host

        def connected() -> asyncio.BaseProtocol:
            if not self._ready.done():
                self._ready.set_result(None)
            return connect()

        quic = client_connection(client_configuration(trusted, host))
        self.transport = QuicTransport(quic, connected, self._send)
        self.transport.on_end = self._ended

    @property
    def answered(self) -> bool:
        """Something has come back: UDP goes through."""
        return self._heard > 0

    async def open(self, port: int) -> None:
        """Raises OSError, and Lost, which is one. Whoever is tired of waiting calls ``abort``."""
        found = await self._loop.getaddrinfo(self._host, port, type=socket.SOCK_DGRAM)
        self._family, _, _, _, address = found[0]
        self._bind()
        self.transport.quic.connect(address, self._loop.time())
        self.transport.transmit()
        await self._ready

    def change_socket(self) -> None:
        """For another network: goes on from another address and port. Raises OSError, and then it
        goes on as before."""
        if self.transport.is_closing():
            return
        before = self._udp
        self._bind()
        if before is not None:
            before.close()
        self.transport.change_path()

    def _bind(self) -> None:
        anywhere = "::" if self._family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104
        self._udp = Udp(bind(self._family, (anywhere, 0), told=True), self._came, self._failed)

    def _send(self, data: bytes, address: Any) -> None:
        if self._udp is not None:
            self._udp.sendto(data, address)

    def _ended(self, why: Lost | None) -> None:
        if not self._ready.done():
            self._ready.set_exception(why or Lost("given up"))
            self._ready.exception()  # whoever waited may have gone
        if self._udp is not None:
            self._udp.close()
        self.gone.set()
        self.on_gone()

    # ------------------------------------------------------------------------- from the socket

    def _came(self, data: bytes, address: Any) -> None:
        self._heard += 1
        self.transport.datagram_received(data, address)

    def _failed(self, error: OSError) -> None:
        """A router's word, or the system's, which anybody may have forged: what stands is asked
        for once more."""
        if not isinstance(error, ConnectionRefusedError) or self.transport.is_closing():
            return
        if not self.transport.ready or self._refused_after == self._heard:
            self.transport.lose(Lost("nobody listens there"))
            return
        self._refused_after = self._heard
        self.transport.quic.send_ping(0)
        self.transport.transmit()
