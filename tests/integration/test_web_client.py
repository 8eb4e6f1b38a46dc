"""What the chat page does, in a real browser, with answers that no whole IDC gives on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web

from imcore import frame, pki
from imcore.proto import client_pb2 as pb
from imctl.testing.browser import Driven
from imctl.web.serve import Pages
from services.sdk.core.reconnect import FOR_GOOD

PAIR = "d:ann:bob"
STATE = "(document.getElementById('state')?.textContent ?? '')"


class ScriptedPages(Pages):
    """The real page, whose gateway is in this process and answers as a test says: ``answers`` by
    the name of a request's body. The IDC that serves is ``idc``."""

    def __init__(self, session: dict[str, str | int], ca_file: Path) -> None:
        super().__init__(session, [], ca_file)
        self.idc = "east"
        self.connects = 0
        self.asked: list[pb.Request] = []
        self.answers: dict[str, Callable[[pb.Request], pb.Response]] = {
            "connect": self._connected,
            "heartbeat": lambda _: pb.Response(heartbeat_ok=pb.HeartbeatOk()),
            "sync": lambda _: pb.Response(sync_ok=pb.SyncOk(token=b"t")),
        }
        self._socket: web.WebSocketResponse | None = None

    async def _ask_ipconf(self, request: web.Request) -> web.Response:
        gateway = {"gateway": "g1", "idc": self.idc, "host": "127.0.0.1", "port": 1}
        parameters = {"heartbeat_ms": 5_000}
        return web.json_response({"gateways": [gateway], "parameters": parameters, "placement": ""})

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        socket = self._socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_bytes(frame.server_preface(frame.VERSION))
        decoder, spoken = frame.FrameDecoder(), False
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                continue
            data = message.data if spoken else message.data[frame.CLIENT_PREFACE_BYTES :]
            spoken = True
            for received in decoder.feed(data):
                asked = pb.Request.FromString(received.body)
                self.asked.append(asked)
                answer = self.answers[str(asked.WhichOneof("body"))](asked)
                body = answer.SerializeToString()
                await socket.send_bytes(frame.encode(frame.RESPONSE, received.id, body))
        return socket

    def _connected(self, request: pb.Request) -> pb.Response:
        self.connects += 1
        origin = pb.Origin(idc=self.idc, incarnation=1)
        ok = pb.ConnectOk(resume_token=b"r", heartbeat_ms=5_000, origin=origin, gateway="g1")
        return pb.Response(connect_ok=ok)

    async def tell(self, event: pb.Event) -> None:
        assert self._socket is not None
        with contextlib.suppress(ConnectionError):
            body = event.SerializeToString()
            await self._socket.send_bytes(frame.encode(frame.EVENT, 0, body))

    async def close(self, reason: str) -> None:
        await self.tell(pb.Event(close=pb.Close(reason=reason)))
        assert self._socket is not None
        await self._socket.close()


@asynccontextmanager
async def scripted(folder: Path) -> AsyncIterator[ScriptedPages]:
    pki.init(folder / "pki", {}, datetime.now(UTC))
    session: dict[str, str | int] = {
        "uid": "ann",
        "device": "web",
        "token": "t",
        "region": "lab",
        "content_bytes_max": 1_000,
    }
    pages = ScriptedPages(session, folder / "pki" / "ca.pem")
    await pages.start(0)
    try:
        yield pages
    finally:
        await pages.stop()


async def opened(browser: Driven, pages: Pages, whom: str = "bob") -> str:
    """A page that is connected and shows the conversation with them."""
    page = await browser.open(pages.url)
    await browser.until(page, f"{STATE}.startsWith('connected')")
    await browser.run(
        page,
        f"document.getElementById('with').value = '{whom}';"
        "document.getElementById('open').requestSubmit()",
    )
    return page


@pytest.mark.parametrize("reason", [*FOR_GOOD, "drained"])
async def test_who_was_ended_for_good_does_not_come_back_unasked(
    chromium: str, tmp_path: Path, reason: str
) -> None:
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        page = await opened(browser, pages)
        await pages.close(reason)
        if reason in FOR_GOOD:
            await browser.until(page, f"{STATE}.startsWith('{reason}: ')")
            await asyncio.sleep(1.5)  # it comes back within 0.4 s from any other end
            assert pages.connects == 1
            assert (await browser.run(page, STATE)).startswith(f"{reason}: ")
            await browser.reload(page)  # a person may
        async with asyncio.timeout(20):
            while pages.connects < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await browser.until(page, f"{STATE}.startsWith('connected')")
