"""Frames inside HTTP requests, for networks where a long connection does not last.

Two lanes to the gateway, one request of each at a time: one brings what was sent, the other fetches
what comes and waits for it. Both are streams with offsets, so a request that was cut is simply made
again; the connection that is seen from above goes on (``services.gateway.polling``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Coroutine

import aiohttp

from imcore import frame
from services.sdk.core.reconnect import RETRY_AFTER_MAX_MS
from services.sdk.transport import DialFailed, OnClosed, OnFrame, Wire

WAIT_MS = 10_000  # of one request: answers to heartbeats mostly end it sooner
REQUEST_S = 5.0  # beyond the wait
GIVE_UP_S = 10.0  # of one failure after the other
GOODBYE_S = 1.0
AGAIN_S = (0.0, 0.05, 0.2, 0.5)  # after so many failures in a row; the last one from there on
IDLE_S = 8.0  # an HTTP connection is kept: less than the gateway keeps it
BYTES_MAX = 64 * 1024  # of one request
_ID_BYTES = 16
_HEAD_UP = struct.Struct(f">{_ID_BYTES}sQ")
_HEAD_DOWN = struct.Struct(f">{_ID_BYTES}sQI")
_OFFSET = struct.Struct(">Q")


class _Gone(DialFailed):
    """The gateway has no such connection any more."""


class _Over(Exception):
    """The gateway has no such connection any more (``gone``), or could not be reached for long."""

    def __init__(self, reason: str, gone: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.gone = gone


class PolledWire:
    """``ready`` is done when the gateway's preface has come."""

    polling = True
    quic = False

    def __init__(
        self, http: aiohttp.ClientSession, url: str, on_frame: OnFrame, on_closed: OnClosed
    ) -> None:
        self._http = http
        self._url = url
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._ident = b""
        self._preface = b""
        self._decoder = frame.FrameDecoder()
        self._sent = bytearray()  # not known to have come to the gateway
        self._arrived = 0  # the offset at which that begins
        self._received = 0
        self._to_send = asyncio.Event()
        self._ended = False
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, timeout_s: float) -> None:
        """Raises DialFailed, and TimeoutError."""
        preface = frame.client_preface()
        ident, again_s = await self._post("open", preface, timeout_s)
        if again_s is not None:
            raise DialFailed("overloaded", f"{self._url}: no room", round(again_s * 1000))
        if len(ident) != _ID_BYTES:
            raise DialFailed("protocol", f"{self._url}: not a gateway's answer")
        self._ident, self._arrived = ident, len(preface)
        self._tasks = [
            self._loop.create_task(self._lane(self._fetch())),
            self._loop.create_task(self._lane(self._bring())),
        ]

    @property
    def opened(self) -> bool:
        """Then ``close`` ends the HTTP session too, once what was sent is brought."""
        return bool(self._tasks)

    # --------------------------------------------------------------------------------- Wire

    def send(self, kind: int, request_id: int, body: bytes) -> None:
        if not self._ended:
            self._sent += frame.encode(kind, request_id, body)
            self._to_send.set()

    def close(self) -> None:
        self._ended = True
        self._to_send.set()  # what was sent is still brought
        if self._tasks:
            self._tasks[0].cancel()

    def changed_network(self) -> None:
        """The next request goes by it."""

    # -------------------------------------------------------------------------------- lanes

    async def _lane(self, lane: Coroutine[None, None, None]) -> None:
        try:
            await lane
        except _Over as over:
            self._end(over.reason, str(over))
        except (frame.FrameError, ValueError, struct.error) as error:
            self._end("protocol", str(error))
        finally:
            if asyncio.current_task() is self._tasks[1]:
                await self._http.close()

    def _end(self, reason: str, message: str) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        if not self.ready.done():
            self.ready.set_exception(DialFailed(reason, message))
        elif not self._ended:
            self._on_closed(reason)
        self._ended = True

    async def _bring(self) -> None:
        while self._sent or not self._ended:
            await self._to_send.wait()
            self._to_send.clear()
            while self._sent:
                head = _HEAD_UP.pack(self._ident, self._arrived)
                try:
                    answer = await self._ask("up", head + bytes(self._sent[:BYTES_MAX]), 0.0)
                except _Over as over:
                    if not over.gone:
                        raise
                    # Its last word, which may forbid to come back, is the other lane's to fetch.
                    await asyncio.wait(self._tasks[:1])
                    return
                arrived = _OFFSET.unpack(answer)[0]
                if not self._arrived <= arrived <= self._arrived + len(self._sent):
                    raise ValueError("an offset that was never sent")
                del self._sent[: arrived - self._arrived]
                self._arrived = arrived
        with contextlib.suppress(DialFailed, TimeoutError):  # or the gateway finds out by itself
            await self._post("close", self._ident, GOODBYE_S)

    async def _fetch(self) -> None:
        while not self._ended:
            body = _HEAD_DOWN.pack(self._ident, self._received, WAIT_MS)
            answer = await self._ask("down", body, WAIT_MS / 1000)
            first = _OFFSET.unpack_from(answer)[0]
            if first > self._received:
                raise ValueError("a hole in what was received")
            data = answer[_OFFSET.size + self._received - first :]
            self._received += len(data)
            self._take(data)

    def _take(self, data: bytes) -> None:
        if not self.ready.done():
            self._preface += data
            if len(self._preface) < frame.SERVER_PREFACE_BYTES:
                return
            data = self._preface[frame.SERVER_PREFACE_BYTES :]
            frame.parse_server_preface(self._preface[: frame.SERVER_PREFACE_BYTES])
            self.ready.set_result(None)
        for received in self._decoder.feed(data):
            if self._ended:
                return
            self._on_frame(received)

    # ----------------------------------------------------------------------------- requests

    async def _ask(self, what: str, body: bytes, wait_s: float) -> bytes:
        """Again until it is answered. Raises _Over."""
        failures, since = 0, 0.0
        while True:
            try:
                answer, again_s = await self._post(what, body, wait_s + REQUEST_S)
            except DialFailed as error:
                reason = error.reason if not self.ready.done() else "lost"
                raise _Over(reason, isinstance(error, _Gone)) from error
            except TimeoutError:
                again_s = 0.0
            else:
                if again_s is None:
                    return answer
            since = since or self._loop.time()
            pause_s = max(AGAIN_S[min(failures, len(AGAIN_S) - 1)], again_s)
            if self._loop.time() + pause_s - since > GIVE_UP_S:
                raise _Over("lost")
            failures += 1
            await asyncio.sleep(pause_s)

    async def _post(self, what: str, body: bytes, timeout_s: float) -> tuple[bytes, float | None]:
        """The answer, and None; or nothing, and after how many seconds to ask again. Raises
        TimeoutError, and DialFailed for what will not do."""
        url = f"{self._url}/poll/{what}"
        try:
            async with asyncio.timeout(timeout_s):
                async with self._http.post(url, data=body, allow_redirects=False) as response:
                    if response.status == 200:
                        return await response.read(), None
                    if response.status in (429, 503):
                        return b"", _again_s(response.headers.get("Retry-After", ""))
                    if response.status == 410:
                        raise _Gone("lost", f"{url}: HTTP 410")
                    raise DialFailed("protocol", f"{url}: HTTP {response.status}")
        except (aiohttp.ClientError, OSError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            if what == "open" or isinstance(cause, ConnectionRefusedError):  # nobody is there
                raise DialFailed("refused", f"{self._url}: {error}") from error
            return b"", 0.0


def _again_s(said: str) -> float:
    """A gateway says seconds. A proxy on the way may say a date: a second will do."""
    seconds = int(said) if said.isascii() and said.isdigit() and len(said) < 10 else 1
    return min(seconds, RETRY_AFTER_MAX_MS / 1000)


class PollingDialer:
    """``context`` None: no TLS, as for ``PlaintextDialer``."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context

    async def dial(
        self, host: str, port: int, timeout_s: float, on_frame: OnFrame, on_closed: OnClosed
    ) -> Wire:
        tls = self._context if self._context is not None else True
        http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=4, keepalive_timeout=IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        scheme = "https" if self._context is not None else "http"
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        wire = PolledWire(http, f"{scheme}://{address}", on_frame, on_closed)
        try:
            async with asyncio.timeout(timeout_s):
                await wire.open(timeout_s)
                await wire.ready
        except BaseException as error:
            wire.close()
            if not wire.opened:
                await http.close()
            if isinstance(error, TimeoutError):
                raise DialFailed("timeout", f"{address} does not answer polls") from error
            raise
        return wire
