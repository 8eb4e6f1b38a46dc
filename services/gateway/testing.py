"""A client that speaks frames and nothing more: for tests, benchmarks and first steps with the
protocol. It keeps no state and reconnects never."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, cast

from imcore import frame
from imcore.proto import client_pb2 as pb

if TYPE_CHECKING:
    from imcore.quic_client import QuicClient


class FrameClient(asyncio.Protocol):
    """``events`` holds what came unasked; ``closed`` is done when the connection is gone."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[pb.Event] = asyncio.Queue()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.spoken: asyncio.Future[int] = loop.create_future()
        self.transport: asyncio.Transport
        self.quic: QuicClient | None = None
        self._decoder = frame.FrameDecoder()
        self._preface = b""
        self._answers: dict[int, asyncio.Future[pb.Response]] = {}
        self._last_id = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        if not self.spoken.done():
            self._preface += data
            if len(self._preface) < frame.SERVER_PREFACE_BYTES:
                return
            self.spoken.set_result(self._preface[4])
            data = self._preface[frame.SERVER_PREFACE_BYTES :]
        for received in self._decoder.feed(data):
            if received.type == frame.EVENT:
                self.events.put_nowait(pb.Event.FromString(received.body))
                continue
            waiting = self._answers.pop(received.id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(pb.Response.FromString(received.body))

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in self._answers.values():
            waiting.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, request: pb.Request) -> asyncio.Future[pb.Response]:
        self._last_id += 1
        answer: asyncio.Future[pb.Response] = asyncio.get_running_loop().create_future()
        self._answers[self._last_id] = answer
        body = request.SerializeToString()
        self.transport.write(frame.encode(frame.REQUEST, self._last_id, body))
        return answer

    async def ask(self, request: pb.Request, timeout_s: float = 5.0) -> pb.Response:
        async with asyncio.timeout(timeout_s):
            return await self.send(request)

    async def event(self, kind: str, timeout_s: float = 5.0) -> pb.Event:
        """The next event of this kind; others that come before it are dropped."""
        async with asyncio.timeout(timeout_s):
            while True:
                event = await self.events.get()
                if event.WhichOneof("body") == kind:
                    return event

    async def gone(self, timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(self.closed)

    def abort(self) -> None:
        """Like a lost network: no goodbye."""
        self.transport.abort()


async def dial(port: int, context: ssl.SSLContext | None, speak: bool = True) -> FrameClient:
    """Connected to 127.0.0.1; ``speak`` False leaves even the preface to the caller."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(FrameClient, "127.0.0.1", port, ssl=context)
    if speak:
        client.transport.write(frame.client_preface())
    return client


async def dial_quic(port: int, trusted: ssl.SSLContext, speak: bool = True) -> FrameClient:
    """Connected to 127.0.0.1 by QUIC."""
    from imcore.quic_client import QuicClient

    client = FrameClient()
    by = QuicClient(lambda: client, "127.0.0.1", trusted)
    client.quic = by
    try:
        async with asyncio.timeout(5):
            await by.open(port)
    except BaseException:
        by.transport.abort()
        raise
    if speak:
        client.transport.write(frame.client_preface())
    return client
