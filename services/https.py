"""What the HTTPS APIs of an IDC share: how they listen, and the one form of their errors."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from imcore.errors import Code, ImError, OutcomeUnknown, Refused, Unavailable, code_of
from imcore.listener import Listen, Listening

log = logging.getLogger("im.https")

HANDSHAKE_S = 5.0
SHUTDOWN_S = 1.0

_STATUS = {
    Code.BAD_REQUEST: 400,
    Code.UNAUTHENTICATED: 401,
    Code.FORBIDDEN: 403,
    Code.BLOCKED: 403,
    Code.ENCRYPTED_ONLY: 403,
    Code.NOT_FOUND: 404,
    Code.CID_CONFLICT: 409,
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
    """``app`` where clients reach it, until ``stop``."""

    def __init__(self, app: web.Application, listen: Listen) -> None:
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        self._listen = listen
        self._listener: Listening | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Returns the port (for 0). Raises OSError when the address is taken."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # of a runner that is set up
        self._listener = self._listen(server, tls, HANDSHAKE_S, SHUTDOWN_S)
        return await self._listener.start(host, port)

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.stop()
        await self._runner.cleanup()


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
