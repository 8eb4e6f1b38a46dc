"""The HTTPS APIs hold no connection for ever, and only so many, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from imcore.listener import Listener
from imcore.tls import client_ssl_context, gateway_ssl_context
from services import https
from services.https import Https
from services.sdk.testing.app import eventually

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = b"GET / HTTP/1.1\r\nHost: fra\r\n"
UPLOAD = b"PUT / HTTP/1.1\r\nHost: fra\r\nContent-Length: 20\r\n\r\n"


class Site:
    """An API that says how many bytes it was sent, once ``open``."""

    def __init__(self, pki_dir: Path, shared: Callable[[str], bool] = lambda _: False) -> None:
        app = web.Application()
        app.router.add_get("/", self._answer)
        app.router.add_put("/", self._answer)
        app.router.add_get("/big", self._big)
        self.api = Https(app, Listener, shared)
        self.pki_dir = pki_dir
        self.streams: list[Stream] = []
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0  # whole requests

    async def start(self) -> None:
        tls = gateway_ssl_context(self.pki_dir, "fra")
        self.port = await self.api.start("127.0.0.1", 0, tls)
        self.tls = client_ssl_context(self.pki_dir / "ca.pem")

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.asked += 1
        await self.open.wait()
        return web.Response(body=b"%d bytes." % len(body))

    async def _big(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(10_000_000))

    async def connect(self, sent: bytes = b"") -> Stream:
        stream = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls, server_hostname="localhost"
        )
        stream[1].write(sent)
        self.streams.append(stream)
        return stream

    async def stop(self) -> None:
        self.open.set()
        for _, writer in self.streams:
            writer.transport.abort()
        await self.api.stop()

    async def holds(self, count: int) -> None:
        """Raises TimeoutError."""
        await eventually(lambda: self.api.connections() == count, 10.0)

    async def answers(self, count: int) -> None:
        """Until it is asked for so many answers. Raises TimeoutError."""
        await eventually(lambda: self.asked == count, 10.0)


async def cut(stream: Stream, within_s: float = 10.0) -> bytes:
    """What came until the other side ended it. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        with contextlib.suppress(ConnectionError):
            return await stream[0].read()
    return b""


async def answer(stream: Stream) -> bytes:
    async with asyncio.timeout(10.0):
        return await stream[0].readuntil(b"bytes.")


@pytest.fixture
async def site(pki_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setattr(https, "HEAD_S", 0.4)
    site = Site(pki_dir)
    await site.start()
    yield site
    await site.stop()


async def test_who_does_not_ask_is_cut_off(site: Site) -> None:
    """Silent, with half a head, after an answer, and with half a head after an answer."""
    silent, half = await site.connect(), await site.connect(HEAD)
    kept, slow = await site.connect(HEAD + b"\r\n"), await site.connect(HEAD + b"\r\n")
    assert b"200 OK" in await answer(kept) and b"200 OK" in await answer(slow)
    slow[1].write(HEAD)
    for stream in (silent, half, kept, slow):
        assert await cut(stream) == b""
    await site.holds(0)


async def test_a_head_that_comes_drop_by_drop_is_cut_off_too(site: Site) -> None:
    stream = await site.connect()

    async def drip() -> None:
        for byte in HEAD * 10:
            stream[1].write(bytes((byte,)))
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert await cut(stream) == b""  # all of it would take 13 s
    dripping.cancel()


async def test_an_upload_that_goes_on_is_not_cut_off(site: Site) -> None:
    stream = await site.connect(UPLOAD)
    for _ in range(20):
        await asyncio.sleep(0.06)
        stream[1].write(b"x")
    assert (await answer(stream)).endswith(b"20 bytes.")
    # Nor one who waits for an answer.
    site.open.clear()
    stream[1].write(HEAD + b"\r\n")
    await asyncio.sleep(1.0)
    site.open.set()
    assert b"200 OK" in await answer(stream)


async def test_who_does_not_read_his_answer_is_cut_off(site: Site, monkeypatch) -> None:
    monkeypatch.setattr(https, "STALLED_S", 0.4)
    stream = await site.connect()
    await site.holds(1)
    stream[1].transport.pause_reading()  # type: ignore[attr-defined]
    stream[1].write(b"GET /big HTTP/1.1\r\nHost: fra\r\n\r\n")
    await site.holds(0)


async def test_silent_connections_keep_nobody_out(site: Site, pki_dir, monkeypatch) -> None:
    """Neither of the same address nor of all; who is being answered keeps his place."""
    monkeypatch.setattr(https, "HEAD_S", 60.0)
    for most, of_one, shared in ((1_000, 4, False), (4, 1_000, False), (4, 2, True)):
        monkeypatch.setattr(https, "CONNECTIONS_MAX", most)
        monkeypatch.setattr(https, "OF_ONE_ADDRESS_MAX", of_one)
        full = Site(pki_dir, lambda _, shared=shared: shared)  # type: ignore[misc]
        await full.start()
        full.open.clear()
        busy = await full.connect(HEAD + b"\r\n")
        await full.answers(1)
        silent = [await full.connect() for _ in range(10)]
        late = await full.connect(HEAD + b"\r\n")
        for stream in silent[:7]:
            assert await cut(stream) == b""
        await full.holds(4)
        full.open.set()
        assert b"200 OK" in await answer(busy) and b"200 OK" in await answer(late)
        await full.stop()


async def test_when_all_are_being_answered_who_comes_is_told_to_come_again(
    pki_dir, monkeypatch
) -> None:
    monkeypatch.setattr(https, "CONNECTIONS_MAX", 2)
    full = Site(pki_dir)
    await full.start()
    full.open.clear()
    busy = [await full.connect(HEAD + b"\r\n") for _ in range(2)]
    await full.answers(2)
    told = await cut(await full.connect(HEAD + b"\r\n"))
    assert told.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1" in told
    full.open.set()
    for stream in busy:
        assert b"200 OK" in await answer(stream)
    await full.stop()
