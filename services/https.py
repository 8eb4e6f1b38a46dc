"""What the HTTPS APIs of an IDC share: how they listen, and the one form of their errors."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from imcore.addresses import neighbourhood
from imcore.errors import Code, ImError, OutcomeUnknown, Refused, Unavailable, code_of
from imcore.listener import Listen, Listening
from imcore.places import Places
from imcore.runtime import Clock
from services.metrics.verbs import Verbs

log = logging.getLogger("im.https")

HANDSHAKE_S = 5.0
SHUTDOWN_S = 1.0
# For the whole head of a request, from the handshake or the last answer on: it fits one packet, and
# whoever has nothing to ask for so long connects anew.
HEAD_S = 10.0
BODY_BYTES_MAX = 16_384  # of a request that is read as a whole
BODY_S = 10.0  # for one that is read as a whole: a few kilobytes
STALLED_S = 30.0  # for an answer that is not read: so long a file's chunk may take too
# Of an API. Who asks for nothing gives way, so these are those that are answered at the same time
# and what a crowd leaves open between: 5,000 at 1,000 lookups a second are those of five seconds.
CONNECTIONS_MAX = 5_000
# A fifth of them: behind one address may be a company or a network of phones, and still it can
# not take the places of all others.
OF_ONE_ADDRESS_MAX = 1_000

_STATUS = {
    Code.BAD_REQUEST: 400,
    Code.UNAUTHENTICATED: 401,
    Code.FORBIDDEN: 403,
    Code.BLOCKED: 403,
    Code.ENCRYPTED_ONLY: 403,
    Code.NOT_FOUND: 404,
    Code.CID_CONFLICT: 409,
    Code.QUOTA: 413,
    Code.TOO_LARGE: 413,
    Code.OVERLOADED: 429,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.NOT_REPLICATED: 503,
    Code.DEADLINE: 504,
}
# For metrics; of the codes with one status the last.
CODES = {status: str(code) for code, status in _STATUS.items()} | {
    403: str(Code.FORBIDDEN),
    503: str(Code.UNAVAILABLE),
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Https:
    """``app`` where clients reach it, until ``stop``. ``shared``: of an address, whether it is one
    that many come from (a proxy of the operator)."""

    def __init__(
        self, app: web.Application, listen: Listen, shared: Callable[[str], bool] = lambda _: False
    ) -> None:
        # aiohttp ends by its keep-alive also who has not asked yet, or not whole.
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=SHUTDOWN_S, keepalive_timeout=HEAD_S
        )
        app.middlewares.insert(0, self._answering)
        self._places: Places[_Carrier] = Places(CONNECTIONS_MAX, OF_ONE_ADDRESS_MAX)
        self._carriers: dict[asyncio.BaseProtocol, _Carrier] = {}  # by aiohttp's protocol of each
        self._shared = shared
        self._listen = listen
        self._listener: Listening | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Returns the port (for 0). Raises OSError when the address is taken."""
        await self._runner.setup()
        self._listener = self._listen(lambda: _Carrier(self), tls, HANDSHAKE_S, SHUTDOWN_S)
        return await self._listener.start(host, port)

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.stop()
        await self._runner.cleanup()

    # -------------------------------------------------------------------------- connections

    def connections(self) -> int:
        return len(self._places)

    def came(self, carrier: _Carrier, address: str) -> asyncio.Protocol | None:
        """aiohttp's protocol for it. None: there is no place."""
        shared = bool(address) and self._shared(address)
        entry = self._places.come(carrier, neighbourhood(address), shared)
        if entry.given_up is not None:
            entry.given_up.abort()
        if not entry.taken:
            return None
        server = self._runner.server
        assert server is not None  # of a runner that is set up
        below = server()
        self._carriers[below] = carrier
        return below

    def went(self, carrier: _Carrier, below: asyncio.Protocol) -> None:
        self._places.go(carrier)
        self._carriers.pop(below, None)

    @web.middleware
    async def _answering(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        carrier = self._carriers.get(request.protocol)
        if carrier is None:  # it has gone
            return await handler(request)
        self._places.asks(carrier)
        try:
            return await handler(request)
        finally:
            self._places.rests(carrier)


class _Carrier(asyncio.Protocol):
    """A connection, before and around aiohttp's protocol: it needs a place, and must be read."""

    def __init__(self, https: Https) -> None:
        self._https = https
        self._below: asyncio.Protocol | None = None
        self._transport: asyncio.Transport
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of its classes
        peer = transport.get_extra_info("peername")
        self._below = self._https.came(self, str(peer[0]) if peer else "")
        if self._below is None:
            self._transport.write(_FULL)
            self._transport.close()
            return
        self._below.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        if self._below is not None:
            self._https.went(self, self._below)
            self._below.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._below is not None:
            self._below.data_received(data)

    def eof_received(self) -> bool | None:
        return self._below.eof_received() if self._below is not None else None

    def pause_writing(self) -> None:
        self._stalled = asyncio.get_running_loop().call_later(STALLED_S, self.abort)
        if self._below is not None:
            self._below.pause_writing()

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
            if self._below is not None:
                self._below.resume_writing()

    def abort(self) -> None:
        self._transport.abort()


_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


def measured(
    verbs: Verbs | None, clock: Clock, by_path: Mapping[str, str] = MappingProxyType({})
) -> Middleware:
    """A middleware that counts answers as verbs: those of ``by_path``, else the route's name."""

    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = clock.now()
        response = await handler(request)
        resource = request.match_info.route.resource
        verb = by_path.get(request.path) or (resource.name if resource is not None else None)
        if verbs is not None and verb is not None:
            verbs.done(verb, clock.now() - began, CODES.get(response.status, ""))
        return response

    return measure


async def whole(request: web.Request) -> bytes:
    """The body of a request that has no other bound. Raises Refused."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise Refused(Code.BAD_REQUEST, "the request is not whole") from None


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as error:
        return answer_error(error.code, str(error))
    except Unavailable as error:
        if error.told != str(error):
            log.info("a request to %s cannot be done now: %s", request.path, error)
        return answer_error(code_of(error), error.told, error.retry_after_ms)
    except OutcomeUnknown as error:
        return answer_error(Code.DEADLINE, str(error), 500)
    except ImError as error:
        return answer_error(Code.UNAVAILABLE, str(error), 500)
    except web.HTTPRequestEntityTooLarge as error:
        return answer_error(Code.TOO_LARGE, error.text or error.reason)
    except web.HTTPException as error:
        code = Code.NOT_FOUND if error.status == 404 else Code.BAD_REQUEST
        return answer_error(code, error.reason, status=error.status)
    except (ConnectionError, web.RequestPayloadError):
        # It broke off in its body: nobody to answer, and nothing that one client may log at will.
        return answer_error(Code.BAD_REQUEST, "the request is not whole")
    except Exception:
        log.exception("a request to %s failed", request.path)
        return answer_error(Code.INTERNAL, "internal error", 500)


def answer_error(
    code: Code, message: str, retry_after_ms: int = 0, status: int | None = None
) -> web.Response:
    body = {"error": {"code": code, "message": message, "retry_after_ms": retry_after_ms}}
    return web.json_response(body, status=status or _STATUS[code])
