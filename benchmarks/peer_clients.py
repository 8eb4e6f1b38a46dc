"""Clients of three protocols, alike and as lean as each other: plain TCP, frames in and out.

Our own protocol, MQTT 3.1.1 (OASIS) for mosquitto, and XMPP (RFC 6120, RFC 6121) for ejabberd, as
far as sending to one other user and receiving take. Each writes what one turn of the loop sends in
one write. A content begins with a number of fixed width.
"""

from __future__ import annotations

import asyncio
import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import cast

from benchmarks.client import Client as FramesClient
from imcore.proto import client_pb2 as pb
from imcore.words import direct_conversation

WIDTH = 8
OnNumber = Callable[[int], None]


def content_of(number: int, size: int) -> bytes:
    return b"%0*d" % (WIDTH, number) + b"x" * (size - WIDTH)


class PeerClient(ABC):
    """``received`` is called with the number of a message that came, ``acked`` with that of one
    that the server has taken (never, where the protocol has no such answer)."""

    acks = True

    def __init__(self, name: str, received: OnNumber, acked: OnNumber) -> None:
        self.name = name
        self.received = received
        self.acked = acked

    @abstractmethod
    async def connect(self, host: str, port: int) -> None:
        """Ready to send and to receive. Raises OSError, TimeoutError."""

    @abstractmethod
    def send(self, to: PeerClient, number: int, size: int) -> None: ...

    def tick(self) -> None:  # noqa: B027 - most protocols ask for nothing
        """Once a second: what the protocol asks of a client beside messages."""

    @abstractmethod
    def close(self) -> None: ...


class Ours(PeerClient):
    """``token`` of a user."""

    def __init__(
        self, name: str, received: OnNumber, acked: OnNumber, token: Callable[[str], bytes]
    ) -> None:
        super().__init__(name, received, acked)
        self._token = token(name)
        self._client = FramesClient(0, name, "phone", self._shown)

    async def connect(self, host: str, port: int) -> None:
        await self._client.connect(host, port, None, self._token)

    def send(self, to: PeerClient, number: int, size: int) -> None:
        client, cid = self._client, self._client.next_cid
        client.next_cid += 1
        client.unacked[cid] = None
        request = pb.Request()
        out = request.send
        out.conversation, out.outbox, out.cid = direct_conversation(self.name, to.name), "b", cid
        out.floor, out.content = next(iter(client.unacked)), content_of(number, size)

        def answered(response: pb.Response) -> None:
            client.unacked.pop(cid, None)
            if response.HasField("send_ack"):
                self.acked(number)

        client.call(request, answered)

    def _shown(self, _: FramesClient, entry: pb.MessageEntry, name: str, index: int) -> None:
        if entry.placed.key.uid != self.name:  # pushes of own messages are for other devices
            self.received(int(entry.content[:WIDTH]))

    def tick(self) -> None:
        self._client.ack_pushes()

    def close(self) -> None:
        self._client.close()


class _Stream(PeerClient, asyncio.Protocol):
    def __init__(self, name: str, received: OnNumber, acked: OnNumber) -> None:
        super().__init__(name, received, acked)
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._transport.write(b"".join(out))

    def close(self) -> None:
        self._transport.abort()


class Mqtt(_Stream):
    """Subscribed to a topic of its own; messages go to the other's."""

    def __init__(self, name: str, received: OnNumber, acked: OnNumber, qos: int) -> None:
        super().__init__(name, received, acked)
        self.acks = qos > 0
        self._qos = qos
        self._ids: dict[int, int] = {}  # packet id -> number
        self._last = 0
        self._ready = self._loop.create_future()

    async def connect(self, host: str, port: int) -> None:
        await self._loop.create_connection(lambda: self, host, port)
        # Clean session, as devices of an IM service would not: what is kept for them costs more.
        head = _text(b"MQTT") + bytes((4, 2)) + struct.pack(">H", 300) + _text(self.name.encode())
        self.write(_packet(0x10, head))
        topic = _text(f"u/{self.name}".encode()) + bytes((self._qos,))
        self.write(_packet(0x82, struct.pack(">H", 1) + topic))
        async with asyncio.timeout(15):
            await self._ready

    def send(self, to: PeerClient, number: int, size: int) -> None:
        body = _text(f"u/{to.name}".encode())
        if self._qos:
            self._last = self._last % 65_535 + 1
            self._ids[self._last] = number
            body += struct.pack(">H", self._last)
        self.write(_packet(0x30 | self._qos << 1, body + content_of(number, size)))

    def data_received(self, data: bytes) -> None:
        self._data += data
        at = 0
        while (found := _next_packet(self._data, at)) is not None:
            kind, body, at = found
            self._packet(kind, body)
        self._data = self._data[at:]

    def _packet(self, kind: int, body: bytes) -> None:
        if kind >> 4 == 3:  # PUBLISH
            (topic,) = struct.unpack_from(">H", body)
            begin = 2 + topic
            if kind & 6:
                self.write(_packet(0x40, body[begin : begin + 2]))
                begin += 2
            self.received(int(body[begin : begin + WIDTH]))
        elif kind >> 4 == 4:  # PUBACK
            self.acked(self._ids.pop(struct.unpack(">H", body)[0]))
        elif kind >> 4 == 9:  # SUBACK
            self._ready.set_result(None)


def _text(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _packet(kind: int, body: bytes) -> bytes:
    size, length = len(body), bytearray()
    while True:
        size, digit = divmod(size, 128)
        length.append(digit | (128 if size else 0))
        if not size:
            return bytes((kind,)) + bytes(length) + body


def _next_packet(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Kind and body of the packet that begins there, and where it ends."""
    size = shift = 0
    for place in range(at + 1, min(at + 5, len(data))):
        size |= (data[place] & 127) << shift
        shift += 7
        if data[place] < 128:
            end = place + 1 + size
            return (data[at], data[place + 1 : end], end) if end <= len(data) else None
    return None


class Xmpp(_Stream):
    """An anonymous login; messages go to the other's full JID. There is no ack of a message."""

    acks = False
    _BODY = re.compile(rb"<body>(\d+)x*</body>")
    _JID = re.compile(rb"<jid>([^<]+)</jid>")

    def __init__(self, name: str, received: OnNumber, acked: OnNumber) -> None:
        super().__init__(name, received, acked)
        self.jid = ""
        self._came = asyncio.Event()

    async def connect(self, host: str, port: int) -> None:
        opening = (
            b"<stream:stream to='localhost' xmlns='jabber:client' "
            b"xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"
        )
        await self._loop.create_connection(lambda: self, host, port)
        self.write(opening)
        await self._until(b"</stream:features>")
        self.write(b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='ANONYMOUS'/>")
        await self._until(b"<success")
        self.write(opening)
        await self._until(b"</stream:features>")
        bind = b"<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>phone</resource></bind>"
        self.write(b"<iq type='set' id='b'>" + bind + b"</iq>")
        found = self._JID.search(await self._until(b"</iq>"))
        if found is None:
            raise OSError(f"{host}:{port} gave no JID")
        self.jid = found[1].decode()
        self.write(b"<presence/>")
        await self._until(b"<presence")

    async def _until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(15):
            while mark not in self._data:
                self._came.clear()
                await self._came.wait()
        taken, self._data = self._data, b""
        return taken

    def send(self, to: PeerClient, number: int, size: int) -> None:
        assert isinstance(to, Xmpp)
        body = b"<body>" + content_of(number, size) + b"</body>"
        self.write(b"<message type='chat' to='" + to.jid.encode() + b"'>" + body + b"</message>")

    def data_received(self, data: bytes) -> None:
        self._data += data
        self._came.set()
        end = self._data.rfind(b"</message>")
        if end >= 0:
            whole, self._data = self._data[:end], self._data[end + 10 :]
            for body in self._BODY.finditer(whole):
                self.received(int(body[1]))
