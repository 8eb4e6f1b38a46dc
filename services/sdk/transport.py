"""Frames over one TLS connection. The dialer is injected: simulations bring their own."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from imcore import frame

# What is sent and not acknowledged by the gateway's TCP for so long went nowhere: the kernel itself
# would try for a quarter of an hour.
USER_TIMEOUT_MS = 20_000

OnFrame = Callable[[frame.Frame], None]
OnClosed = Callable[[str], None]  # a reason: lost or protocol


class DialFailed(Exception):
    """``reason``: refused, timeout, protocol, lost, overloaded, or mute: connected, and then not a
    word. ``retry_after_ms``: when to come again, where that was said; else 0."""

    def __init__(self, reason: str, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_ms = retry_after_ms


class Wire(Protocol):
    polling: bool  # it needs no connection that lasts
    quic: bool  # it survives that the device's address changes

    def send(self, kind: int, request_id: int, body: bytes) -> None: ...

    def close(self) -> None:
        """What was sent is still written; ``on_closed`` is not called any more."""
        ...

    def changed_network(self) -> None:
        """The device is on another one now."""
        ...


class Dialer(Protocol):
    async def dial(
        self, host: str, port: int, timeout_s: float, on_frame: OnFrame, on_closed: OnClosed
    ) -> Wire:
        """Connected, versions agreed. Raises DialFailed."""
        ...


class StreamWire(asyncio.Protocol):
    """All frames of one loop turn go out in one write."""

    polling = False
    quic = False

    def __init__(self, on_frame: OnFrame, on_closed: OnClosed) -> None:
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        # Whoever dialled may have given up by then: a failure nobody asks for is no news.
        self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._decoder = frame.FrameDecoder()
        self._preface = b""
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's TLS transport is none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        raw = transport.get_extra_info("socket")
        if raw is not None:  # with a class of its own in uvloop, and none in a simulation
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        self._transport.write(frame.client_preface())

    def data_received(self, data: bytes) -> None:
        try:
            if not self.ready.done():
                self._preface += data
                if len(self._preface) < frame.SERVER_PREFACE_BYTES:
                    return
                head = self._preface[: frame.SERVER_PREFACE_BYTES]
                data = self._preface[frame.SERVER_PREFACE_BYTES :]
                frame.parse_server_preface(head)
                self.ready.set_result(None)
            for received in self._decoder.feed(data):
                if self._ended:
                    return
                self._on_frame(received)
        except (frame.FrameError, ValueError) as error:
            self._end("protocol", str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("lost", str(exc or "the gateway closed the connection"))

    def _end(self, reason: str, message: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        if not self.ready.done():
            self.ready.set_exception(DialFailed(reason, message))
        elif not self._ended:
            self._on_closed(reason)
        self._ended = True

    def send(self, kind: int, request_id: int, body: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame.encode(kind, request_id, body))

    def changed_network(self) -> None:
        """A connection of TCP stands, or does not: heartbeats tell."""

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    def give_up(self) -> None:
        """While it is dialled. uvloop, too, closes what it has not handed out yet, but forgets the
        TLS of a connection whose handshake is over before it has noticed that TCP's is."""
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self._ended = True
        self._flush()
        # One of TLS that is closed twice cannot be aborted any more (Python 3.11.2).
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()


class _TcpDialer:
    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context

    async def dial(
        self, host: str, port: int, timeout_s: float, on_frame: OnFrame, on_closed: OnClosed
    ) -> Wire:
        loop = asyncio.get_running_loop()
        wire = StreamWire(on_frame, on_closed)
        connected = False
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: wire, host, port, ssl=self._context)
                connected = True
                await wire.ready
        except asyncio.CancelledError:  # by whoever dialled several, and has another by now
            wire.give_up()
            raise
        except TimeoutError as error:
            wire.give_up()
            reason = "mute" if connected else "timeout"
            raise DialFailed(reason, f"{host}:{port} does not answer") from error
        except ssl.SSLError as error:
            raise DialFailed("protocol", f"{host}:{port}: {error.reason}") from error
        except OSError as error:
            raise DialFailed("refused", f"{host}:{port}: {error.strerror or error}") from error
        return wire


class TlsDialer(_TcpDialer):
    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context)


class PlaintextDialer(_TcpDialer):
    """No TLS: whoever is on the way reads the token. For benchmarks, and behind a TLS proxy on the
    same machine."""

    def __init__(self) -> None:
        super().__init__(None)
