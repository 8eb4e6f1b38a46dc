"""The paths by which a process is probed and measured, for each kind of process alike."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def probed(
    registry: CollectorRegistry,
    not_ready: Callable[[], list[str]],
    guard: Callable[[Handler], Handler] = lambda handler: handler,
) -> web.Application:
    """``not_ready``: why nobody should be sent here; empty: they may. ``guard``: who may read
    ``/metrics``; by default everybody."""

    async def livez(request: web.Request) -> web.Response:
        """The loop has answered: that is what it says."""
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        reasons = not_ready()
        if reasons:
            return web.Response(status=503, text="".join(f"not ready: {one}\n" for one in reasons))
        return web.Response(text="ok\n")

    async def metrics(request: web.Request) -> web.Response:
        body = generate_latest(registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application(client_max_size=1024)
    for path, handler in (("/livez", livez), ("/readyz", readyz), ("/metrics", guard(metrics))):
        app.router.add_get(path, handler)
    return app
