"""The listener of gateways and ipconf, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

import pytest

from imcore.listener import Listener
from imcore.tls import client_ssl_context, gateway_ssl_context


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def echo(port: int, tls: ssl.SSLContext | None, said: bytes = b"hello") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(said)
    heard = await reader.readexactly(len(said))
    writer.transport.abort()
    return heard


@pytest.mark.parametrize("plain", [True, False])
async def test_many_come_at_once_and_all_are_served(pki_dir: Path, plain: bool) -> None:
    tls = None if plain else gateway_ssl_context(pki_dir, "fra")
    listener = Listener(Echo, tls, 60.0, 1.0)
    port = await listener.start("127.0.0.1", 0)
    trusted = None if plain else client_ssl_context(pki_dir / "ca.pem")
    heard = await asyncio.gather(*(echo(port, trusted) for _ in range(200)))
    assert heard == [b"hello"] * 200
    await listener.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_clients_that_never_shake_hands_hold_up_nobody(pki_dir: Path) -> None:
    listener = Listener(Echo, gateway_ssl_context(pki_dir, "fra"), 0.5, 1.0)
    port = await listener.start("127.0.0.1", 0)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
    for _, writer in silent[:100]:
        writer.write(b"GET / HTTP/1.1\r\n")
    trusted = client_ssl_context(pki_dir / "ca.pem")
    async with asyncio.timeout(20):
        assert await echo(port, trusted) == b"hello"
        for reader, writer in silent:
            with contextlib.suppress(ConnectionError):
                await reader.read()  # cut, once their time is over
            writer.transport.abort()
    await listener.stop()


async def test_silent_clients_keep_nobody_out_however_many_there_are(
    pki_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One address could take all places, and again each time that its handshakes timed out."""
    monkeypatch.setattr("imcore.listener.HANDSHAKES_MAX", 4)
    monkeypatch.setattr("imcore.listener.LONG_S", 0.1)
    listener = Listener(Echo, gateway_ssl_context(pki_dir, "fra"), 60.0, 1.0)
    port = await listener.start("127.0.0.1", 0)
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
    await asyncio.sleep(0.5)
    assert not any(reader.at_eof() for reader, _ in silent), "nobody came for their places"
    trusted = client_ssl_context(pki_dir / "ca.pem")
    async with asyncio.timeout(20):
        assert await echo(port, trusted) == b"hello"
        with contextlib.suppress(ConnectionError):
            assert await silent[0][0].read() == b""
        assert not any(reader.at_eof() for reader, _ in silent[1:])
        heard = await asyncio.gather(*(echo(port, trusted) for _ in range(20)))
    assert heard == [b"hello"] * 20
    await listener.stop()
    for _, writer in silent:
        writer.transport.abort()


async def test_a_handshake_that_is_under_way_does_not_outlive_the_listener(pki_dir: Path) -> None:
    listener = Listener(Echo, gateway_ssl_context(pki_dir, "fra"), 30.0, 1.0)
    port = await listener.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(20):
        await listener.stop()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.transport.abort()


async def test_an_address_that_is_taken_is_said_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError):
        await Listener(Echo, None, 1.0, 1.0).start("127.0.0.1", taken.getsockname()[1])
