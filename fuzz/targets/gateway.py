"""The gateway's sockets. Whatever bytes come over one connection, and however it ends: another
connection is served at once, nothing is logged as an error, and nothing is left of the bad one.

The first byte says how it is sent: whole or in pieces, behind a good preface and Connect or bare,
read from or not, ended or cut; as it is, behind the upgrade to a WebSocket, or behind a /poll/open,
whose id stands in for WHOSE then."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct

from fuzz.lab import Centre, Loop, hello
from fuzz.target import Target
from fuzz.targets.requests import REQUESTS
from imcore import frame

_GREETED, _PIECES, _READ, _CUT, _WEB, _POLL = 1, 2, 4, 8, 16, 32
_UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
WHOSE = b"WHOSE-CONNECTION"  # as long as an id
_PIECE_BYTES = 37
_GONE_S = 5.0
_epochs = itertools.count(1)
_loop = Loop()
_centre: list[Centre] = []


def check(data: bytes) -> None:
    _loop.run(_check(data[0] if data else 0, data[1:]))


async def _check(how: int, stream: bytes) -> None:
    if not _centre:
        centre = Centre()
        await centre.start()
        _centre.append(centre)
    centre = _centre[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", centre.gateway.port)
    first = b""
    if how & _GREETED:
        request = hello("mallory", next(_epochs)).SerializeToString()
        first = frame.client_preface() + frame.encode(frame.REQUEST, 1, request)
    async with asyncio.timeout(_GONE_S):
        if how & _WEB:
            writer.write(_UPGRADE + (_masked(2, first) if first else b""))
            await reader.readuntil(b"\r\n\r\n")
        elif how & _POLL:
            writer.write(_post(b"open", first or frame.client_preface()))
            await reader.readuntil(b"\r\n\r\n")
            stream = stream.replace(WHOSE, await reader.readexactly(len(WHOSE)))
        else:
            writer.write(first)
        if first and not how & _POLL:
            await reader.readexactly(frame.SERVER_PREFACE_BYTES + frame.HEADER.size)
    step = _PIECE_BYTES if how & _PIECES else max(1, len(stream))
    try:
        for at in range(0, len(stream), step):
            writer.write(stream[at : at + step])
            await writer.drain()
            await asyncio.sleep(0)
        await centre.bystander()  # while the other connection stands
        if how & _READ and not how & _CUT:
            writer.write_eof()
            async with asyncio.timeout(_GONE_S):
                await reader.read()
    except OSError:
        pass  # the gateway has ended it
    _end(writer, bool(how & _CUT))
    for polled in list(centre.gateway.polling._open.values()):
        polled.abort()  # they outlive what carried them
    async with asyncio.timeout(_GONE_S):
        while len(centre.gateway) > 1:
            await centre.bystander()
    await centre.bystander()


def _end(writer: asyncio.StreamWriter, cut: bool) -> None:
    """Cut: a reset, and what is unread is thrown away."""
    if cut:
        raw = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is closed already
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _masked(opcode: int, data: bytes) -> bytes:
    """A WebSocket frame of a client, under a key of zeros."""
    short = len(data) < 126
    head = bytes((0x80 | opcode, 0x80 | (len(data) if short else 126)))
    return head + (b"" if short else len(data).to_bytes(2)) + bytes(4) + data


def _post(path: bytes, body: bytes) -> bytes:
    head = b"POST /poll/%s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
    return head % (path, len(body)) + body


def seeds() -> list[bytes]:
    framed = [
        frame.encode(frame.REQUEST, number, request.SerializeToString())
        for number, request in enumerate(REQUESTS, start=2)
    ]
    greeting = frame.client_preface() + framed[-2]
    [heartbeat] = [request for request in REQUESTS if request.HasField("heartbeat")]
    flood = frame.encode(frame.REQUEST, 9, heartbeat.SerializeToString()) * 150
    chunks = frame.encode(frame.REQUEST, 5, bytes(3 * frame.BODY_BYTES_MAX))
    at = len(greeting).to_bytes(8)
    hows = itertools.cycle(_GREETED | how for how in range(0, 16, 2))
    return [
        *(bytes([how]) + one for one, how in zip(framed, hows, strict=False)),
        bytes([_READ]) + greeting, bytes([_PIECES | _READ]) + greeting + framed[0],
        bytes([_GREETED]) + flood, bytes([_GREETED | _CUT]) + chunks,
        b"\0GET / HTTP/1.1\r\n\r\n", b"\0\x16\x03\x01\x02\0",
        *(bytes([_WEB | _GREETED]) + _masked(2, one) for one in framed),
        bytes([_WEB]) + _masked(2, greeting), bytes([_WEB | _READ]) + _masked(9, b"?") * 300,
        bytes([_WEB | _PIECES]) + _masked(2, b"") * 200 + _masked(8, b"\3\xe8"),
        bytes([_WEB | _READ]) + _masked(1, b"text"),
        bytes([_POLL | _GREETED]) + _post(b"up", WHOSE + at + framed[0]) * 3,
        bytes([_POLL | _GREETED | _READ]) + _post(b"down", WHOSE + bytes(12)) * 40,
        bytes([_POLL]) + (_post(b"close", WHOSE) + _post(b"open", b"IMCP")) * 5,
    ]  # fmt: skip


WORDS = [
    WHOSE,
    b"POST /poll/up HTTP/1.1\r\n",
    b"\x89\x80\0\0\0\0",
    frame.MAGIC,
    b"\1\1",
    b"\1\0\0\0\0\0\0\1",
    b"\3\0\0\0\0\0\0\0",
    b"\1\1\5\x78\0\0\0\1",
]
TARGET = Target("gateway", check, seeds, words=WORDS, bytes_max=8192, cpu_s=3.0)
