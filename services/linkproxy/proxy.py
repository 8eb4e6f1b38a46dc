"""All links of a region: listeners for each ordered pair, directions, faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from imcore.errors import BadInput, Code, Refused
from imcore.region.model import Region
from imcore.region.rules import split
from services.linkproxy.model import Direction, LinkSpec, Mode
from services.linkproxy.relay import HostPort, Relay

Pair = tuple[str, str]  # who dials, who is dialled


class Fault(NamedTuple):
    """``spec`` None: as the region file says."""

    source: str
    target: str
    mode: Mode
    both_ways: bool
    spec: LinkSpec | None = None


class Route(NamedTuple):
    """A further address that ``source`` dials in ``target``: ``listen`` here leads to ``address``.
    It shares the link's delay, rate and faults with the calls to the peer endpoint."""

    source: str
    target: str
    listen: HostPort
    address: HostPort


def endpoints(region: Region) -> dict[str, HostPort]:
    """Where each IDC, and the witness, takes calls from peers."""
    found = {idc.name: split(idc.endpoints.peer) for idc in region.spec.idcs}
    if region.spec.witness:
        found[region.spec.witness.name] = split(region.spec.witness.peer)
    return found


def link_specs(region: Region) -> dict[Pair, LinkSpec]:
    """Each way of each link; a pair without a link (the witness's may lack one) adds nothing."""
    names = list(endpoints(region))
    specs = {(a, b): LinkSpec() for a in names for b in names if a != b}
    for link in region.spec.links:
        spec = LinkSpec(link.delay_ms, link.jitter_ms, link.loss, link.rate_mbit * 1_000)
        specs[link.between] = specs[link.between[::-1]] = spec
    return specs


class LinkProxy:
    """Listens for every (who dials, who is dialled), relays to the latter's peer endpoint, and on
    each route to the address that it names."""

    def __init__(
        self,
        targets: Mapping[str, HostPort],
        specs: Mapping[Pair, LinkSpec],
        rng: random.Random,
        routes: Sequence[Route] = (),
    ) -> None:
        """Raises BadInput for a route between IDCs that there are not."""
        for route in routes:
            if (route.source, route.target) not in specs:
                raise BadInput(f"a route leads from {route.source} to {route.target}: no link")
        self._routes = routes
        self._targets = targets
        self._configured = dict(specs)
        self._directions = {pair: Direction(*pair, spec) for pair, spec in specs.items()}
        self._rng = rng
        self._relays: set[Relay] = set()
        self._servers: list[asyncio.Server] = []

    async def listen(self, wanted: Mapping[Pair, HostPort]) -> dict[Pair, HostPort]:
        """Start listening: on ``wanted`` addresses (a restart keeps them), else on free ports of
        this machine; on each route where it says. Returns where for each pair. Raises OSError."""
        bound = {}
        for pair in self._directions:
            wish = wanted.get(pair, ("127.0.0.1", 0))
            bound[pair] = await self._listen(pair, wish, self._targets[pair[1]])
        for route in self._routes:
            await self._listen((route.source, route.target), route.listen, route.address)
        return bound

    async def _listen(self, pair: Pair, wish: HostPort, address: HostPort) -> HostPort:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(partial(self._accept, pair, address), *wish)
        self._servers.append(server)
        return wish[0], server.sockets[0].getsockname()[1]

    def _accept(self, pair: Pair, address: HostPort) -> asyncio.Protocol:
        out, back = self._directions[pair], self._directions[pair[::-1]]
        relay = Relay(out, back, address, self._rng, self._relays.discard)
        self._relays.add(relay)
        return relay.near

    def apply(self, fault: Fault) -> str:
        """Returns what was done. Raises Refused for IDCs that there are not."""
        changed = list(self._affected(fault))
        now = asyncio.get_running_loop().time()
        for direction in changed:
            healed = fault.mode is Mode.PASS and direction.cut_too_long(now)
            direction.set_mode(fault.mode, now)
            spec = fault.spec or self._configured[direction.source, direction.target]
            healed |= direction.set_spec(spec, now)
            for relay in [r for r in self._relays if direction in r.directions]:
                relay.changed(healed)
        arrow = "<->" if fault.both_ways else "->"
        return f"link {fault.source} {arrow} {fault.target}: {_words(changed[0])}"

    def _affected(self, fault: Fault) -> Iterable[Direction]:
        forth: Pair = (fault.source, fault.target)
        for pair in (forth, forth[::-1]) if fault.both_ways else (forth,):
            if pair not in self._directions:
                known = ", ".join(sorted(self._targets))
                raise Refused(
                    Code.BAD_REQUEST,
                    f"expected two different ones of {known}, got {pair[0]} and {pair[1]}",
                )
            yield self._directions[pair]

    def links(self) -> list[dict[str, object]]:
        """For status: each way of each link."""
        return [
            {
                "from": d.source,
                "to": d.target,
                "mode": d.mode.value,
                "delay_ms": d.spec.delay_ms,
                "jitter_ms": d.spec.jitter_ms,
                "loss": d.spec.loss,
                "rate_kbit": d.spec.rate_kbit,
                "as_configured": d.spec == self._configured[pair],
                "connections": sum(d is r.directions[0] for r in self._relays),
            }
            for pair, d in self._directions.items()
        ]

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for relay in list(self._relays):
            relay.reset()
        for server in self._servers:
            await server.wait_closed()


def _words(direction: Direction) -> str:
    if direction.mode is not Mode.PASS:
        return f"{direction.mode}s everything"
    spec = direction.spec
    return (
        f"passes, delay {spec.delay_ms:g} ms ± {spec.jitter_ms:g} ms, "
        f"loss {spec.loss:g}, {spec.rate_kbit / 1_000:g} Mbit/s"
    )
