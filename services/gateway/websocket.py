"""The client protocol inside WebSocket messages (RFC 6455), for clients in browsers.

A connection that begins with an HTTP request instead of the protocol's preface asks for it. The
bytes are the same then, preface and frames, in binary messages that may be cut anywhere: to its
``Connection`` this is a transport like any other. The rules of WebSocket themselves are
``websockets``' business; nothing is compressed, since what is encrypted afterwards must not tell
its content by its length.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from imcore.bucket import Bucket

if TYPE_CHECKING:
    from services.gateway.connection import Connection
    from services.gateway.server import Gateway

ASKS = b"GET "
MESSAGE_BYTES_MAX = 64 * 1024  # either way
_PROTOCOL_ERROR = 1002

_log = logging.getLogger("im.gateway.websocket")
_log.setLevel(logging.ERROR)  # it would repeat what strangers send


class WebSocket(asyncio.Transport, asyncio.Protocol):
    """Towards the socket a protocol, towards ``connection`` a transport."""

    kind = "websocket"

    def __init__(self, below: asyncio.Transport, connection: Connection, gateway: Gateway) -> None:
        super().__init__()
        config, self._clock = gateway.config, gateway.clock
        self._bare = Bucket(config.controls_per_s, config.controls_burst, self._clock.now())
        self._below = below
        self._connection = connection
        self._rules = ServerProtocol(max_size=MESSAGE_BYTES_MAX, logger=_log)

    # -------------------------------------------------------------- of the socket's transport

    def data_received(self, data: bytes) -> None:
        self._rules.receive_data(data)
        for event in self._rules.events_received():
            if isinstance(event, Request):
                response = self._rules.accept(event)
                self._rules.send_response(response)
            elif isinstance(event, Frame):
                self._take(event)
            if self._below.is_closing():
                return
        self._send_out()

    def _take(self, one: Frame) -> None:
        """Pongs are the rules' to send, and go out with what else a step brings."""
        binary = one.opcode in (Opcode.BINARY, Opcode.CONT)
        if binary and one.data:
            self._connection.data_received(bytes(one.data))
        elif one.opcode is Opcode.TEXT:
            self._rules.fail(_PROTOCOL_ERROR, "expected binary messages")
        elif one.opcode is not Opcode.CLOSE and self._bare.take(self._clock.now()):
            self._connection.rubbish("too many WebSocket frames that bring nothing")

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def _send_out(self) -> None:
        """In one write; an empty piece is the last one."""
        pieces = self._rules.data_to_send()
        if data := b"".join(pieces):
            self._below.write(data)
        if b"" in pieces:
            self._below.close()

    # ------------------------------------------------------------------------ to the connection

    def write(self, data: Any) -> None:
        if self._rules.state is State.OPEN:
            for start in range(0, len(data), MESSAGE_BYTES_MAX):
                self._rules.send_binary(data[start : start + MESSAGE_BYTES_MAX])
            self._send_out()

    def close(self) -> None:
        if self._rules.state is State.OPEN:
            self._rules.send_close()
            self._send_out()
        self._below.close()

    def abort(self) -> None:
        self._below.abort()

    def is_closing(self) -> bool:
        return self._below.is_closing()

    def pause_reading(self) -> None:
        self._below.pause_reading()

    def resume_reading(self) -> None:
        self._below.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)


def begin(below: asyncio.Transport, connection: Connection, gateway: Gateway) -> WebSocket:
    """From here on the connection speaks through what is returned."""
    web = WebSocket(below, connection, gateway)
    below.set_protocol(web)
    return web
