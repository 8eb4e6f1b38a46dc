"""Pages of other origins may ask the HTTPS APIs for clients: the region file says whose (CORS, the
Fetch standard). Browsers alone keep to it, and a gateway's WebSocket needs none of it: whoever
connects anywhere shows a token, which no browser sends by itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

from aiohttp import web

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_ASKED_AGAIN_S = 600  # a browser asks beforehand so often
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def open_to(app: web.Application, origins: Collection[str]) -> None:
    """Before the app is started. No origins: its answers say nothing of any."""
    if not origins:
        return
    allowed = frozenset(origins)

    @web.middleware
    async def asked_beforehand(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return web.Response(status=204)  # ``named`` puts the rest there
        return await handler(request)

    async def named(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers.add("Vary", "Origin")
        origin = request.headers.get("Origin", "")
        if origin not in allowed:
            return
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Expose-Headers"] = "*"
        if request.method == "OPTIONS":
            headers["Access-Control-Allow-Methods"] = _METHODS
            asked = request.headers.get("Access-Control-Request-Headers", "")
            headers["Access-Control-Allow-Headers"] = asked
            headers["Access-Control-Max-Age"] = str(_ASKED_AGAIN_S)

    app.middlewares.append(asked_beforehand)
    app.on_response_prepare.append(named)
