"""The route table (rule 16). Pure.

Only the owning IDC writes its routes; nobody writes a removal for another. Whether a route is still
good is judged when it is read, by its gateway's lease and the policy: so the routes of a dead
gateway, or of a lost IDC, go at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin


class Route(NamedTuple):
    """Ordered by (connection epoch, hlc): the newest connection of a device wins."""

    connection_epoch: int
    hlc: int
    origin: Origin
    gateway: str
    connection: int
    gone: bool
    kind: str = ""  # of device
    away_ms: int = 0  # of one that is gone: so long it had had no connection
    since_hlc: int = 0

    @property
    def since(self) -> int:
        """When the device connected (or went): a route may be logged later. HLC."""
        return self.since_hlc or self.hlc


DEVICES_KEPT = 20  # of a user; more of them, and the oldest that are long gone are forgotten
GONE_MS = 3_600_000  # for so long: no older word of such a device is still to come


class RouteTable:
    """In memory, of all users. A product may name a new device with each login: those are in the
    KV, and not all of them here."""

    def __init__(self) -> None:
        self._routes: dict[str, dict[str, Route]] = {}  # user -> device -> route
        self._newest = 0  # hlc

    def apply(self, origin: Origin, hlc: int, op: oplog.RouteOp) -> bool:
        """Merge a folded route; False when a newer one is known."""
        route = Route(
            op.connection_epoch,
            hlc,
            origin,
            op.gateway,
            op.connection,
            op.gone,
            op.kind,
            op.away_ms,
            op.since_hlc,
        )
        self._newest = max(hlc, self._newest)
        devices = self._routes.setdefault(op.uid, {})
        known = devices.get(op.device)
        if known is not None and known[:3] > route[:3]:
            return False
        devices[op.device] = route
        if len(devices) > DEVICES_KEPT:
            _forget_gone(devices, self._newest)
        return True

    def routes(self, uid: str) -> dict[str, Route]:
        return self._routes.get(uid, {})

    def idcs_of(
        self, uids: Iterable[str], usable: Callable[[str, str], bool]
    ) -> dict[str, list[str]]:
        """Which IDCs have a device of these users; ``usable(idc, gateway)``: the gateway's lease
        is alive and the policy has not given the IDC up."""
        found: dict[str, list[str]] = {}
        for uid in uids:
            idcs = dict.fromkeys(
                route.origin.idc
                for route in self._routes.get(uid, {}).values()
                if not route.gone and usable(route.origin.idc, route.gateway)
            )
            for idc in idcs:
                found.setdefault(idc, []).append(uid)
        return found


def _forget_gone(devices: dict[str, Route], now: int) -> None:
    long_ago = now - (GONE_MS << 16)
    gone = [
        (route.hlc, device)
        for device, route in devices.items()
        if route.gone and route.hlc < long_ago
    ]
    for _, device in sorted(gone)[: len(devices) - DEVICES_KEPT]:
        del devices[device]
