"""The listener where a name has several addresses."""

from __future__ import annotations

import asyncio
import socket

import pytest

from imcore.listener import Listener


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def test_every_address_of_a_name_is_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as free:
        port = free.getsockname()[1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{n}", port)) for n in (2, 3, 2)]
    listener = Listener(Echo, None, 1.0, 1.0)
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        await listener.start("somewhere", port)
    for host in ("127.0.0.2", "127.0.0.3"):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.transport.abort()
    await listener.stop()
