"""Each gateway is known to everybody by a leased key in the registry of its IDC; and each route
instance to the gateways."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from imcore.errors import ImError
from imcore.region.model import Idc
from services.ipconf.directory import PREFIX, SLOW_START_S
from services.node.config import split_address
from services.ports import Registry

if TYPE_CHECKING:  # a route instance keeps a lease too, and has no gateway to load
    from services.gateway.server import Gateway

log = logging.getLogger("im.traffic")

LEASE_MS = 2_000
REFRESH_S = 0.5


async def keep_leases(
    registry: Registry,
    those: Callable[[], Mapping[str, Mapping[str, Any]]],
    kept: Callable[[Collection[str]], None] = lambda names: None,
    prefix: bytes = PREFIX,
) -> None:
    """``those``: by name, what is said of each. ``kept``: is told which of them are there now.
    Until cancelled; a registry that is away is asked again, and what it has lost is written again;
    who is not named any more is taken out."""
    lease = 0
    known: set[str] = set()
    while True:
        try:
            if not lease or not await registry.keep_alive(lease):
                lease = await registry.grant_lease(LEASE_MS)
            now = those()
            for name in sorted(known - now.keys()):
                await registry.put(prefix + name.encode(), None)
                known.discard(name)
            for name, described in now.items():
                known.add(name)
                await registry.put(prefix + name.encode(), json.dumps(described).encode(), lease)
            kept(known)
        except ImError as error:
            lease = 0
            kept(())
            log.warning("leases of %s: %s", prefix.decode(), error)
        await asyncio.sleep(REFRESH_S)


def describe(idc: Idc, gateway: Gateway, port: int) -> dict[str, Any]:
    """``port``: where clients find it."""
    return {
        "idc": idc.name,
        "gateway": gateway.name,
        "host": split_address(idc.endpoints.gateway)[0],
        "port": port,
        "connections": len(gateway),
        "capacity": max(1, idc.capacity.sessions // idc.gateways),
        # In whole seconds, and no further than it counts: else each refresh would be news.
        "age_s": int(min(gateway.age_s(), SLOW_START_S)),
    }
