"""The client protocol inside HTTP requests, for clients whose long connections do not last.

The bytes are the same, preface and frames. They are two streams with offsets, which outlive the
HTTP connections that carry them: whatever is cut is asked for again by its offset, so nothing is
lost and nothing comes twice. To its ``Connection`` this is a transport like any other; a session
is authenticated by the Connect in it, as ever. HTTP itself is aiohttp's business.

Four requests (docs/protocol.md), each a POST whose body has the length it says: ``/poll/open``
begins, ``/poll/up`` brings bytes, ``/poll/down`` fetches some and waits for them, ``/poll/close``
ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web

from imcore.addresses import neighbourhood
from imcore.bucket import Bucket, Buckets
from imcore.errors import retry_after_ms
from imcore.places import Places
from imcore.runtime import Clock
from services.gateway.config import GatewayConfig

ASKS = b"POST"
ID_BYTES = 16
UP_BYTES_MAX = 64 * 1024  # of one request, and of one answer
_HEAD_UP = struct.Struct(f">{ID_BYTES}sQ")  # id, offset of the first byte that follows
_HEAD_DOWN = struct.Struct(f">{ID_BYTES}sQI")  # id, offset up to which all is here, wait in ms
_OFFSET = struct.Struct(">Q")
_CARRIER_IDLE_S = 10.0  # an HTTP connection without a request; a request's head must be in by then
_ANSWER_S = 10.0  # for an answer to be read
_STOP_S = 0.2  # for the last answers
_CARRIERS_PER_POLLER = 3  # one waits, one brings something, one has just been given up


class Gone(Exception):
    """There is no such connection, or no longer."""


class Polled(asyncio.Transport):
    """Towards ``connection`` a transport. What was sent is kept until its offset is confirmed."""

    kind = "polling"

    def __init__(
        self,
        ident: bytes,
        peer: Any,
        bucket: Bucket,
        entered_by: Carrier | None,
        over: Callable[[Polled], None],
    ) -> None:
        super().__init__()
        self.ident = ident
        self.bucket = bucket
        self.entered_by = entered_by  # the carrier that has come through a door for it
        self._peer = peer
        self._over = over
        self._connection: asyncio.Protocol
        self._received = 0
        self._confirmed = 0
        self._unconfirmed = bytearray()
        self._high = 64 * 1024
        self._paused = False
        self._waiting: asyncio.Event | None = None  # set: answer with what there is
        self._reading = asyncio.Event()
        self._reading.set()
        self._closing = False  # no more comes from above; what is left may be fetched
        self._lost = False

    def begin(self, connection: asyncio.Protocol) -> None:
        self._connection = connection
        connection.connection_made(self)

    # ---------------------------------------------------------------------- of HTTP requests

    async def take(self, offset: int, data: bytes, wait_s: float) -> int:
        """Bytes from the client, some of which may have come before. Returns up to which offset
        all is here: less than was brought while the connection is throttled. Raises Gone, and
        ValueError for a hole."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._reading.wait()
        if self._closing:
            raise Gone
        if offset > self._received:
            raise ValueError("a hole in what was sent")
        new = data[self._received - offset :]
        if new and self._reading.is_set():
            self._received += len(new)
            self._connection.data_received(new)
        return self._received

    async def fetch(self, confirmed: int, wait_s: float) -> tuple[int, bytes]:
        """What follows ``confirmed``, as soon as there is something, empty after ``wait_s``. Raises
        Gone, and ValueError for an offset that was never sent."""
        if self._lost:
            raise Gone
        known = confirmed - self._confirmed
        if not 0 <= known <= len(self._unconfirmed):
            raise ValueError("no such offset")
        del self._unconfirmed[:known]
        self._confirmed = confirmed
        if self._paused and len(self._unconfirmed) <= self._high // 4:
            self._paused = False
            self._connection.resume_writing()
        self._answer()  # an older request: whoever made it has given it up
        if not self._unconfirmed and not self._closing:
            waiting = self._waiting = asyncio.Event()
            try:
                async with asyncio.timeout(wait_s):
                    await waiting.wait()
            except TimeoutError:
                pass
            finally:
                if self._waiting is waiting:
                    self._waiting = None
        if self._lost:
            raise Gone
        first = self._confirmed
        data = bytes(self._unconfirmed[:UP_BYTES_MAX])
        if self._closing and len(data) == len(self._unconfirmed):
            self._end()  # all has been said
        return first, data

    def _answer(self) -> None:
        if self._waiting is not None:
            self._waiting.set()

    # ------------------------------------------------------------------------ to the connection

    def write(self, data: Any) -> None:
        if self._closing:
            return
        self._unconfirmed += data
        if not self._paused and len(self._unconfirmed) > self._high:
            self._paused = True
            self._connection.pause_writing()
        self._answer()

    def close(self) -> None:
        self._closing = True
        self._reading.set()
        self._answer()
        if not self._unconfirmed:
            self._end()

    def abort(self) -> None:
        self._closing = True
        self._unconfirmed.clear()
        self._reading.set()
        self._end()
        self._answer()

    def _end(self) -> None:
        if not self._lost:
            self._lost = True
            self._over(self)
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading.clear()

    def resume_reading(self) -> None:
        self._reading.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = self._high if high is None else high

    def get_write_buffer_size(self) -> int:
        return len(self._unconfirmed)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "entered":
            return self.entered_by is not None
        return self._peer if name == "peername" else default


class Carrier(asyncio.Protocol):
    """An HTTP connection, around aiohttp's protocol for it. It has come through a door, which is
    good for one that is polled at a time. ``bucket``: of what it may begin."""

    def __init__(
        self,
        http: asyncio.Protocol,
        address: str,
        shared: bool,
        bucket: Bucket,
        over: Callable[[Carrier], None],
    ) -> None:
        self.http = http
        self.address = address
        self.shared = shared  # by many: what it carries counts as if each had come by himself
        self.bucket = bucket
        self.entered = not shared
        self._over = over
        self.peer: Any = None
        self._transport: asyncio.BaseTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.peer = transport.get_extra_info("peername")
        self.http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.http.data_received(data)

    def eof_received(self) -> bool | None:
        return self.http.eof_received()

    def pause_writing(self) -> None:
        self.http.pause_writing()

    def resume_writing(self) -> None:
        self.http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(self)
        self.http.connection_lost(exc)

    def abort(self) -> None:
        cast(asyncio.Transport, self._transport).abort()


class Polling:
    """All connections of a gateway that are polled, and the HTTP connections that carry them.
    ``connect`` makes the protocol of a new one."""

    def __init__(
        self, config: GatewayConfig, clock: Clock, connect: Callable[[], asyncio.Protocol]
    ) -> None:
        self._config = config
        self._clock = clock
        self._connect = connect
        self._open: dict[bytes, Polled] = {}
        self._places: Places[Carrier] = Places(
            _CARRIERS_PER_POLLER * config.polled_max, config.connections_of_address
        )
        self._carriers: dict[asyncio.BaseProtocol, Carrier] = {}  # by aiohttp's protocol of each
        of_address = max(1.0, config.polls_of_address * config.connects_per_s)
        self._begun = Buckets(of_address, of_address)  # by address
        self._paths = {
            "/poll/open": self._begin,
            "/poll/up": self._up,
            "/poll/down": self._down,
            "/poll/close": self._close,
        }
        # Whoever breaks off a request that waits has no further claim on the place.
        self._http = web.Server(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=_CARRIER_IDLE_S,
            lingering_time=0.0,
        )

    def __len__(self) -> int:
        return len(self._open)

    def carriers(self) -> int:
        return len(self._http.connections)

    def begin(self, below: asyncio.Transport, asked: bytes, refused_ms: int) -> None:
        """``below`` begins with an HTTP request, of which ``asked`` has come. ``refused_ms``: it
        is to come back after so long; 0: there is room."""
        config = self._config
        peer = below.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        counted, shared = neighbourhood(address), config.is_shared(address)
        if not refused_ms and not self._places.room(counted, shared):
            refused_ms = config.retry_after_ms
        if refused_ms:
            again = f"Retry-After: {_seconds(refused_ms)}\r\n".encode()
            head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n"
            below.write(head + again + b"\r\n")
            below.close()
            return
        bucket = Bucket(
            config.polls_of_carrier_per_s, config.polls_of_carrier_burst, self._clock.now()
        )
        carrier = Carrier(self._http(), counted, shared, bucket, self._gone)
        entry = self._places.come(carrier, counted, shared)
        if entry.given_up is not None:
            entry.given_up.abort()
        self._carriers[carrier.http] = carrier
        below.set_protocol(carrier)
        carrier.connection_made(below)
        carrier.data_received(asked)

    def _gone(self, carrier: Carrier) -> None:
        self._places.go(carrier)
        self._carriers.pop(carrier.http, None)

    async def stop(self) -> None:
        for polled in list(self._open.values()):
            polled.abort()
        await self._http.shutdown(_STOP_S)

    # -------------------------------------------------------------------------------- requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        carrier = self._carriers.get(request.protocol)
        if carrier is None:  # it has gone
            return web.Response(status=410)
        self._places.asks(carrier)
        try:
            return await self._answer(request, carrier)
        finally:
            self._places.rests(carrier)

    async def _answer(self, request: web.BaseRequest, carrier: Carrier) -> web.StreamResponse:
        handle = self._paths.get(request.path) if request.method == "POST" else None
        try:
            if handle is None:
                raise _Refused(404)
            response = web.Response(body=await handle(carrier, await self._body(request)))
        except Gone:
            response = web.Response(status=410)
        except (ValueError, struct.error, web.RequestPayloadError, ConnectionError):
            response = web.Response(status=400)
        except _Refused as refused:
            response = web.Response(status=refused.status)
            if refused.again_ms:
                response.headers["Retry-After"] = _seconds(refused.again_ms)
        if response.status >= 400:
            response.force_close()
        try:
            # Who has gone gets his answer when he asks again.
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(_ANSWER_S):
                    await response.prepare(request)
                    await response.write_eof()
        except TimeoutError:  # it does not read
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _body(self, request: web.BaseRequest) -> bytes:
        length = request.content_length
        if length is None:
            raise _Refused(411)
        if length > _HEAD_DOWN.size + UP_BYTES_MAX:
            raise _Refused(413)
        try:
            async with asyncio.timeout(self._config.first_frame_ms / 1000):
                return await request.read()
        except TimeoutError:
            raise _Refused(408) from None

    async def _begin(self, carrier: Carrier, body: bytes) -> bytes:
        now = self._clock.now()
        if not carrier.shared:
            wait_s = carrier.bucket.take(now) or self._begun.take(carrier.address, now)
            if wait_s:
                raise _Refused(429, retry_after_ms(wait_s))
        if len(self._open) >= self._config.polled_max:
            raise _Refused(503, self._config.retry_after_ms)
        if len(body) > UP_BYTES_MAX:
            raise _Refused(413)
        config = self._config
        bucket = Bucket(config.requests_per_s, config.requests_burst, now)
        entered_by, carrier.entered = carrier if carrier.entered else None, False
        polled = Polled(
            secrets.token_bytes(ID_BYTES), carrier.peer, bucket, entered_by, self._ended
        )
        self._open[polled.ident] = polled
        polled.begin(self._connect())
        await polled.take(0, body, 0.0)
        return polled.ident

    async def _up(self, carrier: Carrier, body: bytes) -> bytes:
        ident, offset = _HEAD_UP.unpack_from(body)
        data = body[_HEAD_UP.size :]
        if len(data) > UP_BYTES_MAX:
            raise _Refused(413)
        polled = self._find(ident)
        return _OFFSET.pack(await polled.take(offset, data, self._config.poll_wait_ms / 1000))

    async def _down(self, carrier: Carrier, body: bytes) -> bytes:
        ident, confirmed, wait_ms = _HEAD_DOWN.unpack(body)
        polled = self._find(ident)
        wait_s = min(wait_ms, self._config.poll_wait_ms) / 1000
        first, data = await polled.fetch(confirmed, wait_s)
        return _OFFSET.pack(first) + data

    async def _close(self, carrier: Carrier, body: bytes) -> bytes:
        self._find(body).abort()  # as if the client's socket had closed
        return b""

    def _find(self, ident: bytes) -> Polled:
        polled = self._open.get(ident)
        if polled is None:
            raise Gone
        if polled.bucket.take(self._clock.now()):
            raise _Refused(429, 1_000)
        return polled

    def _ended(self, polled: Polled) -> None:
        self._open.pop(polled.ident, None)
        if polled.entered_by is not None:
            polled.entered_by.entered = True


class _Refused(Exception):
    def __init__(self, status: int, again_ms: int = 0) -> None:
        super().__init__(status)
        self.status = status
        self.again_ms = again_ms


def _seconds(ms: int) -> str:
    """As HTTP wants it, which knows whole ones only."""
    return str(-(-ms // 1000))
