"""Serves the chat page on this machine, and takes what it says to the deployment.

A browser trusts no region's own CA, so the page speaks to this server in plain text over loopback,
and it to ipconf and gateways over TLS, with their certificates checked. WebSocket messages are
passed on as they are. Whoever knows the address is this user: its path is a secret of this run.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from aiohttp import WSMsgType, web

from imcore.tls import client_ssl_context

PAGE = Path(__file__).with_name("page")
_TYPES = {".html": "text/html", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'; img-src data:",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
IPCONF_S = 5.0
CONNECT_S = 5.0  # a paused gateway's kernel takes the connection; then the next one is asked


class Pages:
    """For one user's device. ``session``: what the page is told of itself, its token too."""

    def __init__(
        self, session: Mapping[str, str | int], ipconf_urls: list[str], ca_file: Path
    ) -> None:
        """Raises BadInput when the CA cannot be read."""
        self._session = session
        self._urls = ipconf_urls
        self._tls = client_ssl_context(ca_file)
        self.path = f"/{secrets.token_urlsafe(16)}/"
        self._once = f"/{secrets.token_urlsafe(16)}"
        self._opened = False
        self._gateways: set[tuple[str, int]] = set()  # that ipconf has named
        self._runner: web.AppRunner | None = None
        self._http: aiohttp.ClientSession | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.path}"

    @property
    def once(self) -> str:
        """Leads to the page, the first time: for a browser that is started with it, since everybody
        on the machine sees a program's arguments."""
        return f"http://127.0.0.1:{self._port}{self._once}"

    async def start(self, port: int) -> None:
        """0: any. Raises OSError when the port is taken."""
        app = web.Application()
        base = self.path
        app.router.add_get(self._once, self._open, allow_head=False)
        app.router.add_get(base, self._file)
        app.router.add_get(base + "session", self._tell_session)
        app.router.add_get(base + "gateways", self._ask_ipconf)
        app.router.add_get(base + "connect", self._connect)
        app.router.add_get(base + "{name:[a-z]+\\.js}", self._file)
        self._http = aiohttp.ClientSession()
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        if self._http is not None:
            await self._http.close()

    async def _open(self, request: web.Request) -> web.Response:
        if self._opened:
            said = "This was opened already. The address of the page stands in the terminal.\n"
            return web.Response(status=410, text=said, headers=_HEADERS)
        self._opened = True
        return web.Response(status=303, headers={**_HEADERS, "Location": self.path})

    async def _file(self, request: web.Request) -> web.Response:
        path = PAGE / request.match_info.get("name", "index.html")
        if not path.is_file():
            raise web.HTTPNotFound
        return web.Response(
            text=path.read_text(), content_type=_TYPES[path.suffix], headers=_HEADERS
        )

    async def _tell_session(self, request: web.Request) -> web.Response:
        return web.json_response(self._session, headers=_HEADERS)

    async def _ask_ipconf(self, request: web.Request) -> web.Response:
        """Of the first ipconf that answers, its answer."""
        assert self._http is not None
        why = "no ipconf answers"
        for url in self._urls:
            try:
                async with self._http.get(
                    f"{url}/v1/gateways",
                    params={"last": request.query.get("last", "")},
                    headers={"Authorization": f"Bearer {self._session['token']}"},
                    ssl=self._tls,
                    timeout=aiohttp.ClientTimeout(IPCONF_S),
                ) as response:
                    answer = await response.json()
                    for row in answer.get("gateways", ()):
                        self._gateways.add((row["host"], row["port"]))
                    return web.json_response(answer, status=response.status)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                why = f"{url}: {error or 'no answer in time'}"
        return web.json_response({"error": {"message": why}}, status=503)

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        """A gateway's WebSocket; only to where ipconf has sent the page."""
        assert self._http is not None
        host, port = request.query.get("host", ""), request.query.get("port", "")
        if not port.isdecimal() or (host, int(port)) not in self._gateways:
            raise web.HTTPForbidden(text="expected a gateway that ipconf has named")
        try:
            async with asyncio.timeout(CONNECT_S):
                gateway = await self._http.ws_connect(f"wss://{host}:{port}/", ssl=self._tls)
        except TimeoutError:
            raise web.HTTPBadGateway(text=f"{host}:{port} does not answer in time") from None
        except aiohttp.ClientError as error:
            raise web.HTTPBadGateway(text=str(error)) from error
        async with gateway:
            page = web.WebSocketResponse()
            await page.prepare(request)
            ways = [
                asyncio.ensure_future(_pass_on(page, gateway)),
                asyncio.ensure_future(_pass_on(gateway, page)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await page.close()
            return page


async def _pass_on(
    source: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
    target: web.WebSocketResponse | aiohttp.ClientWebSocketResponse,
) -> None:
    async for message in source:
        if message.type is WSMsgType.BINARY:
            await target.send_bytes(message.data)
