"""The HTTPS API: a client's address, uid, network and last gateway -> ordered gateways.

Stateless but for the last committed policy: it goes on answering from that, flagged ``stale``, when
no majority of the registries can be reached.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from aiohttp import web

from imcore.addresses import Address, inside, listed, neighbourhood, unmapped
from imcore.attest import RegionKeys
from imcore.bearer import claims_of
from imcore.bucket import Buckets
from imcore.doors import Doors
from imcore.errors import Code, Overloaded, Refused, Unavailable, retry_after_ms
from imcore.listener import Listen, Listener
from imcore.region.model import Region
from imcore.runtime import Clock
from imcore.tokens import Claims
from imcore.words import IDC_HEADER
from services.https import BODY_BYTES_MAX, Https, errors, measured, whole
from services.ipconf.directory import Directory
from services.ipconf.geo import Shards
from services.ipconf.locate import Locator
from services.ipconf.rank import Scored, rank
from services.ipconf.reports import PER_REQUEST_MAX, Reports
from services.ipconf.ticket import Ticket, mint
from services.ipconf.timeouts import REPORTED_MS_MAX, Bounds, Timeouts
from services.metrics.verbs import Verbs
from services.origins import open_to
from services.policy.holder import PolicyHolder

TTL_MS = 30_000
REPORTS_AGAIN_MS = 1_000
NETWORKS = frozenset({"wifi", "cellular", "wired", "unknown"})
TRANSPORTS = ["tcp", "websocket", "polling"]
# All devices of a user that lose their gateways ask at once, and again while they find no other;
# so do all that are behind one address.
_USER_BURST_S = 10
_ADDRESS_BURST_S = 5

_VERBS = {"/v1/gateways": "gateways", "/v1/reports": "reports"}


class IpconfServer:
    """``in_minority``: whether this IDC has had no majority for the hold time; then it ranks itself
    last. ``reports`` is shared with the controller; ``is_heard``: whether that hears of them now,
    else clients take theirs to another ipconf. ``verbs``: where answers are counted.
    ``routes``: what else is served here, under names that are its verbs; errors are answered and
    counted as those of ipconf itself."""

    def __init__(
        self,
        own: str,
        region: Region,
        keys: RegionKeys,
        holder: PolicyHolder,
        directory: Directory,
        locator: Locator,
        reports: Reports,
        clock: Clock,
        in_minority: Callable[[], bool] = lambda: False,
        verbs: Verbs | None = None,
        listen: Listen = Listener,
        routes: Sequence[web.RouteDef] = (),
        is_heard: Callable[[], bool] = lambda: True,
    ) -> None:
        self._measure = measured(verbs, clock, _VERBS)
        self._routes = routes
        self._listen = listen
        self._own = own
        self._region = region
        self._keys = keys
        self._holder = holder
        self._directory = directory
        self._locator = locator
        self._reports = reports
        self._clock = clock
        self._in_minority = in_minority
        self._is_heard = is_heard
        self._shards = Shards(region.spec.geo)
        self._proxies = [ip_network(text) for text in region.spec.geo.trusted_proxies]
        self._parameters = _parameters(region)
        self._timeouts = Timeouts(
            {
                network: Bounds(*(told[field] for field in Bounds._fields))
                for network, told in self._parameters.items()
            }
        )
        # Files are served where this API is, unless they have a door of their own (docs/media.md).
        self._media = (
            {
                idc.name: f"https://{idc.endpoints.media or idc.endpoints.ipconf}"
                for idc in region.spec.idcs
            }
            if region.spec.media is not None
            else {}
        )
        limits = region.spec.limits
        # Before the doors: a refusal there puts everybody off who comes later.
        self._of_address = Buckets(
            limits.address_lookups_per_s, _ADDRESS_BURST_S * limits.address_lookups_per_s
        )
        self._of_user = Buckets(
            limits.user_lookups_per_s, _USER_BURST_S * limits.user_lookups_per_s
        )
        self._doors = Doors(limits.lookups_per_s, limits.lookups_per_s, clock.now())
        self._https: Https | None = None

    async def start(self, host: str, port: int, tls: ssl.SSLContext) -> int:
        """Returns the port (for 0). Raises OSError when the address is taken."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._measure, errors])
        app.router.add_get("/v1/gateways", self._gateways)
        app.router.add_post("/v1/reports", self._report)
        app.add_routes(self._routes)
        app.on_response_prepare.append(self._say_whose)
        open_to(app, self._region.spec.client.web_origins)
        self._https = Https(app, self._listen, lambda address: listed(address, self._proxies))
        return await self._https.start(host, port, tls)

    async def stop(self) -> None:
        if self._https is not None:
            await self._https.stop()

    async def _say_whose(self, _: web.Request, response: web.StreamResponse) -> None:
        """Of one IDC there may be several: a client has to know whether two say the same."""
        response.headers[IDC_HEADER] = self._own

    # ------------------------------------------------------------------------------ routes

    async def _gateways(self, request: web.Request) -> web.StreamResponse:
        came_from = self._came_from(request)
        claims = self._claims(request, came_from)
        if wait_s := self._of_user.take(claims.uid, self._clock.now()):
            raise Overloaded("this user asks too often", retry_after_ms(wait_s))
        if retry_ms := self._doors.enter(self._clock.now()):
            raise Overloaded("too many clients ask at once", retry_ms)
        network = request.query.get("network", "unknown")
        if network not in NETWORKS:
            raise Refused(Code.BAD_REQUEST, f"network: expected one of {sorted(NETWORKS)}")
        connect_ms = _milliseconds(request, "connect_ms")
        heartbeat_ms = _milliseconds(request, "heartbeat_ms")
        policy = self._holder.policy
        if policy is None:
            raise Unavailable("no policy is known yet", retry_after_ms=500)
        address = self._address(request, claims, came_from)
        shard = self._shards.of(address, self._locator.locate(address))
        live = self._directory.live()
        last = request.query.get("last", "")
        at = next(
            (idc for idc, gateways in live.items() for each in gateways if each.name == last), ""
        )
        minority = (self._own,) if self._in_minority() else ()
        ranked = rank(policy, self._region, shard, claims.uid, live, at, minority)
        if not ranked:
            raise Unavailable("no gateway is alive", retry_after_ms=500)
        now = self._clock.now()
        self._timeouts.hear(
            network, claims.uid, self._crowd(came_from), connect_ms, heartbeat_ms, now
        )
        placement = mint(self._keys, Ticket(shard, claims.uid, policy.epoch))
        return web.json_response(
            {
                "policy_epoch": policy.epoch,
                "stale": self._holder.stale,
                "shard": shard,
                "placement": placement,
                "idcs": list(dict.fromkeys(each.gateway.idc for each in ranked)),
                "gateways": [_row(each) for each in ranked],
                "media": self._media_of(ranked),
                "parameters": self._parameters[network] | self._timeouts.of(network, now),
                "ttl_ms": TTL_MS,
            }
        )

    def _media_of(self, ranked: Sequence[Scored]) -> list[dict[str, str]]:
        """Where files are, in the order of the IDCs, best first."""
        idcs = dict.fromkeys(each.gateway.idc for each in ranked)
        return [{"idc": idc, "url": self._media[idc]} for idc in idcs if idc in self._media]

    async def _report(self, request: web.Request) -> web.StreamResponse:
        claims = self._claims(request, self._came_from(request))
        if not self._is_heard():
            raise Unavailable("no controller hears of reports here", REPORTS_AGAIN_MS)
        try:
            accused = _accused(json.loads(await whole(request)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Refused(
                Code.BAD_REQUEST, 'expected {"reports": [{"gateway", "idc", "failure"}]}'
            ) from error
        if not self._reports.add(claims.uid, accused, self._clock.now()):
            raise Overloaded("reports come too often", retry_after_ms=REPORTS_AGAIN_MS)
        return web.Response(status=204)

    # ------------------------------------------------------------------------------ callers

    def _came_from(self, request: web.Request) -> Address:
        """The socket's address; a header's from listed proxies only."""
        address = _parsed(request.remote or "")
        forwarded = request.headers.getall("X-Forwarded-For", [])
        hops = [hop for line in forwarded for hop in line.split(",")]
        # From the nearest hop outwards: the first that is not one of ours is the client.
        while hops and inside(address, self._proxies):
            address = _parsed(hops.pop())
        return address

    def _claims(self, request: web.Request, came_from: Address) -> Claims:
        """Whoever has no token is bound by his address, and so is who has the tokens of many."""
        crowd = self._crowd(came_from)
        if crowd and (wait_s := self._of_address.take(crowd, self._clock.now())):
            raise Overloaded("too many ask from this address", retry_after_ms(wait_s))
        header = request.headers.get("Authorization", "")
        return claims_of(header, self._keys, self._clock.wall_ms())

    def _crowd(self, came_from: Address) -> str:
        """All who count as one address. Empty: it is one of our proxies, which says nothing."""
        return "" if inside(came_from, self._proxies) else neighbourhood(str(unmapped(came_from)))

    def _address(self, request: web.Request, claims: Claims, came_from: Address) -> Address:
        """Where the client is: any for an admin who says so."""
        wanted = request.headers.get("X-Im-Address")
        if wanted is None:
            return came_from
        if not claims.admin:
            raise Refused(Code.FORBIDDEN, "X-Im-Address needs an admin token")
        return _parsed(wanted)


def _parameters(region: Region) -> dict[str, dict[str, Any]]:
    """What clients are told, by the kind of their network."""
    common = region.spec.client.model_dump(exclude={"web_origins"})
    common["transports"] = [*(["quic"] if common.pop("quic") else []), *TRANSPORTS]
    kinds = {"cellular": common.pop("cellular")}
    return {network: common | kinds.get(network, {}) for network in NETWORKS}


def _milliseconds(request: web.Request, name: str) -> int | None:
    """None: it is not said. Raises Refused."""
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= REPORTED_MS_MAX):
        raise Refused(
            Code.BAD_REQUEST, f"{name}: expected whole milliseconds from 0 to {REPORTED_MS_MAX}"
        )
    return int(text)


def _parsed(text: str) -> Address:
    try:
        return ip_address(text.strip())
    except ValueError as error:
        raise Refused(Code.BAD_REQUEST, "expected an IP address") from error


def _accused(document: Any) -> list[str]:
    """The IDCs that a report accuses. A gateway that has no room just now is there, and says so:
    who takes a lost IDC's clients must not come to look lost itself. Raises KeyError or TypeError
    for what is no report."""
    rows = document["reports"]
    if not isinstance(rows, list):
        raise TypeError("reports: expected a list")
    for row in rows:
        # A report is refused whole: one that is half understood would count for half of it.
        fields = (row["idc"], row.get("gateway", ""), row.get("failure", ""))
        if not all(isinstance(field, str) for field in fields):
            raise TypeError("a report's fields are strings")
    return [row["idc"] for row in rows[:PER_REQUEST_MAX] if row.get("failure") != Code.OVERLOADED]


def _row(each: Scored) -> dict[str, Any]:
    gateway = each.gateway
    return {
        "idc": gateway.idc,
        "gateway": gateway.name,
        "host": gateway.host,
        "port": gateway.port,
        "score": each.score,
    }
