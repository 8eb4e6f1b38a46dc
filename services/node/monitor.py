"""Liveness, readiness and metrics of a node or a witness over HTTPS (docs/metrics.md).

``/livez`` and ``/readyz`` are open to whoever reaches the port: what probes a process has no
certificate. ``/metrics`` and ``/hot`` want one of a person, viewer or above: the first says how
much goes on here, the second who talks most.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry

from imcore import roles
from imcore.listener import Listener
from imcore.tls import monitor_ssl_context, peer_name
from services.https import Https
from services.metrics.hot import KINDS, Hot
from services.node.metrics import (
    HOT_SHOWN,
    registry_of,
    registry_of_front,
    registry_of_ipconf,
    registry_of_route,
)
from services.probes import Handler, probed

if TYPE_CHECKING:
    from services.node.front import FrontNode
    from services.node.ipconf import IpconfNode
    from services.node.node import Node
    from services.node.route import RouteNode


class Monitor:
    """``not_ready``: why nobody should be sent here; empty: they may. ``hot``: the hottest of a
    node; None: here is nothing that could be hot."""

    def __init__(
        self,
        name: str,
        pki: Path,
        registry: CollectorRegistry,
        not_ready: Callable[[], list[str]],
        hot: Callable[[], Hot | None] | None = None,
    ) -> None:
        self.not_ready = not_ready
        self.registry = registry
        self._name = name
        self._pki = pki
        self._hottest = hot

    async def start(self, host: str, port: int, stack: AsyncExitStack) -> None:
        """Before anything else of the process, so that a long start can be told from a hang.
        Raises OSError when the address is taken."""
        app = probed(self.registry, self.not_ready, _for_viewers)
        if self._hottest is not None:
            app.router.add_get("/hot", _for_viewers(self._hot))
        # Bounded as the APIs of clients are: who probes it is known by nothing but its address.
        https = Https(app, Listener)
        stack.push_async_callback(https.stop)
        await https.start(host, port, monitor_ssl_context(self._pki, self._name))

    async def _hot(self, request: web.Request) -> web.Response:
        hot = self._hottest() if self._hottest else None
        if hot is None:
            raise web.HTTPServiceUnavailable(text="nothing is measured yet\n")
        return web.json_response(
            {
                kind: [
                    {"name": _text(row.key), "count": row.count, "error": row.error}
                    for row in hot.top(kind, HOT_SHOWN)
                ]
                for kind in KINDS
            }
        )


def of_node(node: Node) -> Monitor:
    def not_ready() -> list[str]:
        if not node.serving:
            return ["its roles are not all up: it starts, stands by, or stops"]
        own = {gateway.name for gateway in node.gateways}
        found = {gateway.name for gateway in node.traffic.directory.live_in(node.idc)}
        if not own & found:
            return ["no gateway of it is in discovery: its registry has no lease of one"]
        return []

    def hot() -> Hot | None:
        return node.measured.hot if node.measured is not None else None

    return Monitor(node.idc, node.config.pki, registry_of(node), not_ready, hot)


def of_front(front: FrontNode) -> Monitor:
    config = front.config
    return Monitor(config.idc.name, config.pki, registry_of_front(front), front.not_ready)


def of_ipconf(ipconf: IpconfNode) -> Monitor:
    config = ipconf.config
    return Monitor(config.idc.name, config.pki, registry_of_ipconf(ipconf), ipconf.not_ready)


def of_route(route: RouteNode) -> Monitor:
    config = route.config
    return Monitor(config.idc.name, config.pki, registry_of_route(route), route.not_ready)


def _text(key: str | bytes) -> str:
    return key if isinstance(key, str) else key.decode("latin-1").encode("unicode_escape").decode()


def _for_viewers(handler: Handler) -> Handler:
    async def guarded(request: web.Request) -> web.StreamResponse:
        role = roles.role_named(peer_name(request.transport))
        if role is None or not role.covers(roles.Role.VIEWER):
            raise web.HTTPForbidden(
                text="show a certificate of the role viewer, operator or admin\n"
            )
        return await handler(request)

    return guarded
