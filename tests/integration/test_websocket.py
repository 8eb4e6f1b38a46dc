"""The client protocol inside WebSocket messages: spoken by another implementation of RFC 6455."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from imcore import frame
from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from services.gateway import websocket
from services.gateway.config import GatewayConfig
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)
CHAT = "d:ann:bob"


class Browser:
    """What a page does: frames into binary messages, and back."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self._decoder = frame.FrameDecoder()
        self._preface = b""
        self._heard: list[frame.Frame] = []
        self.largest = 0  # message

    async def say(self, data: bytes, cut: int = 1 << 20) -> None:
        for start in range(0, len(data), cut):
            await self.socket.send_bytes(data[start : start + cut])

    async def hear(self) -> frame.Frame:
        while not self._heard:
            data = await self.socket.receive_bytes(timeout=5)
            self.largest = max(self.largest, len(data))
            if len(self._preface) < frame.SERVER_PREFACE_BYTES:
                self._preface += data
                data = self._preface[frame.SERVER_PREFACE_BYTES :]
                self._preface = self._preface[: frame.SERVER_PREFACE_BYTES]
            self._heard += self._decoder.feed(data)
        return self._heard.pop(0)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    async with Front(KEYS, limits=GatewayConfig(first_frame_ms=20_000)) as made:
        yield made


@pytest.fixture
async def page(front: Front) -> AsyncIterator[Browser]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://127.0.0.1:{front.gateways[0].port}/"
        yield Browser(await stack.enter_async_context(session.ws_connect(url)))


def request(number: int, body: pb.Request) -> bytes:
    return frame.encode(frame.REQUEST, number, body.SerializeToString())


@pytest.mark.parametrize("cut", [1 << 20, 700, 1])
async def test_a_page_connects_sends_and_is_pushed_to(front: Front, page: Browser, cut: int):
    bob, _ = await front.connect("bob")
    await page.say(frame.client_preface() + request(1, front.hello("ann")), cut)
    assert pb.Response.FromString((await page.hear()).body).connect_ok.session
    content = b"x" * 3_000  # in chunks
    send = pb.Request(send=pb.Send(conversation=CHAT, cid=1, content=content))
    await page.say(request(2, send), max(cut, 100))
    answers = {(await page.hear()).id for _ in range(2)}
    assert answers == {0, 2}  # its own push, and the ack
    pushed = await bob.event("push")
    assert pushed.push.entries[0].message.content == content


async def test_no_message_to_a_page_is_larger_than_the_protocol_says(front: Front, page: Browser):
    await page.say(frame.client_preface() + request(1, front.hello("ann")))
    await page.hear()
    for _ in range(2):
        front.im.store(CHAT, b"x" * 100_000)
    pull = pb.Request(pull=pb.Pull(conversation=CHAT))
    await page.say(request(2, pull))
    answer = pb.Response.FromString((await page.hear()).body)
    assert [len(entry.message.content) for entry in answer.pull_ok.entries] == [100_000] * 2
    assert 1_400 < page.largest <= websocket.MESSAGE_BYTES_MAX


async def test_a_page_is_told_why_it_must_go(front: Front, page: Browser):
    await page.say(frame.client_preface() + request(1, front.hello("ann")))
    await page.hear()
    await front.connect("ann", 2)
    event = pb.Event.FromString((await page.hear()).body)
    assert event.close.reason == "replaced"
    assert (await page.socket.receive(5)).type is aiohttp.WSMsgType.CLOSE


async def test_a_ping_is_answered(page: Browser):
    await page.socket.ping(b"?")
    await page.say(frame.client_preface())
    assert await page.socket.receive_bytes(timeout=5) == frame.server_preface(1)


BAD = {
    "text": lambda socket: socket.send_str("hello"),
    "rubbish": lambda socket: socket.send_bytes(b"rubbish"),
    "too_long": lambda socket: socket.send_bytes(
        frame.client_preface() + bytes(websocket.MESSAGE_BYTES_MAX)
    ),
    "nested": lambda socket: socket.send_bytes(b"GET / HTTP/1.1\r\n\r\n"),
}


@pytest.mark.parametrize("name", BAD)
async def test_rubbish_costs_only_its_own_connection(front: Front, page: Browser, name: str):
    bob, _ = await front.connect("bob")
    await BAD[name](page.socket)
    async with asyncio.timeout(5):
        while not page.socket.closed:
            await page.socket.receive()
    assert len(front.gateways[0]) == 1
    assert not bob.closed.done()


@pytest.mark.parametrize(
    "text", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET \x00\xff\r\n\r\n", b"GET " + b"a" * 20_000]
)
async def test_http_that_asks_for_something_else_is_refused(front: Front, text: bytes):
    reader, writer = await asyncio.open_connection("127.0.0.1", front.gateways[0].port)
    writer.write(text)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 4") or answer == b""
    writer.close()
    assert len(front.gateways[0]) == 0


@pytest.mark.parametrize("text", [b"G", b"GET / HTTP/1.1\r\nHost: a\r\n"])
async def test_a_request_that_does_not_end_is_given_up(text: bytes):
    async with Front(KEYS, limits=GatewayConfig(first_frame_ms=1_000)) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", front.gateways[0].port)
        writer.write(text)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
