"""The HTTPS listener of files where ipconf, which else serves them too, is another process."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from ipaddress import ip_network

from aiohttp import web

from imcore.addresses import listed
from imcore.listener import Listen, Listener
from imcore.region.model import Region
from imcore.runtime import Clock
from services.https import BODY_BYTES_MAX, Https, errors, measured
from services.metrics.verbs import Verbs
from services.origins import open_to


class MediaListener:
    """``verbs``: where answers are counted, under the routes' names."""

    def __init__(
        self,
        routes: Sequence[web.RouteDef],
        region: Region,
        clock: Clock,
        verbs: Verbs | None = None,
        listen: Listen = Listener,
    ) -> None:
        proxies = [ip_network(text) for text in region.spec.geo.trusted_proxies]
        app = web.Application(
            client_max_size=BODY_BYTES_MAX, middlewares=[measured(verbs, clock), errors]
        )
        app.add_routes(routes)
        open_to(app, region.spec.client.web_origins)
        self._https = Https(app, listen, lambda address: listed(address, proxies))

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Returns the port (for 0). Raises OSError when the address is taken."""
        return await self._https.start(host, port, tls)

    async def stop(self) -> None:
        await self._https.stop()
