"""Frames over QUIC, for networks that change and that lose packets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from imcore.quic import Lost
from imcore.quic_client import GOODBYE_S, QuicClient
from services.sdk.transport import DialFailed, OnClosed, OnFrame, StreamWire, Wire


class QuicWire(StreamWire):
    quic = True

    def __init__(
        self, host: str, trusted: ssl.SSLContext, on_frame: OnFrame, on_closed: OnClosed
    ) -> None:
        super().__init__(on_frame, on_closed)
        self.client = QuicClient(lambda: self, host, trusted)

    def changed_network(self) -> None:
        with contextlib.suppress(OSError):  # there is no network; heartbeats find out
            self.client.change_socket()

    def close(self) -> None:
        super().close()
        self._loop.call_later(GOODBYE_S, self.client.transport.abort)


class QuicDialer:
    """Trusts whom ``context`` does."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._open: set[QuicClient] = set()

    async def gone(self) -> None:
        """Until all connections, which are closed, have said so. No system does it for them."""
        for client in list(self._open):
            await client.gone.wait()

    async def dial(
        self, host: str, port: int, timeout_s: float, on_frame: OnFrame, on_closed: OnClosed
    ) -> Wire:
        wire = QuicWire(host, self._context, on_frame, on_closed)
        client = wire.client
        self._open.add(client)
        client.on_gone = lambda: self._open.discard(client)
        try:
            async with asyncio.timeout(timeout_s):
                await client.open(port)
                await wire.ready
        except BaseException as error:
            client.transport.abort()
            if isinstance(error, TimeoutError):
                # Without an answer UDP does not go through; with one the gateway is too slow.
                reason = "mute" if client.answered else "timeout"
                raise DialFailed(reason, f"{host}:{port} does not answer by QUIC") from error
            if isinstance(error, Lost):
                reason = "protocol" if client.answered else "refused"
                raise DialFailed(reason, f"{host}:{port}: {error}") from error
            if isinstance(error, OSError):
                message = f"{host}:{port}: {error.strerror or error}"
                raise DialFailed("refused", message) from error
            raise
        return wire
