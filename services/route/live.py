"""The shell around presence, typing and logins: implements ``Live`` towards im."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from imcore.errors import Overloaded
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import Devices
from imcore.runtime import Clock
from imcore.words import Origin
from services.ports import Kicks, Pushes, Session
from services.route.logins import Kicked, surplus
from services.route.presence import Full, Presence, Watches, presence_of
from services.route.signals import SignalQueue
from services.route.table import Route, RouteTable

TURN_S = 1.0
_FULL_RETRY_MS = 5_000
_DEVICES_MAX = 100  # in one answer


class State(Pushes, Kicks, Protocol):
    """What it needs of the state role."""


class LiveRoutes:
    """``usable``, ``gateways``: whether a route by a gateway of an IDC is good now, and all such
    gateways. ``signals``: to the other IDCs."""

    def __init__(
        self,
        idc: str,
        routes: RouteTable,
        usable: Callable[[str, str], bool],
        gateways: Callable[[], frozenset[tuple[str, str]]],
        state: State,
        signals: Mapping[str, SignalQueue],
        clock: Clock,
        policy: Devices,
    ) -> None:
        self._idc = idc
        self._policy = policy
        self._kicked = Kicked()
        self._routes = routes
        self._usable = usable
        self._gateways = gateways
        self._state = state
        self._signals = signals
        self._clock = clock
        self._known: frozenset[tuple[str, str]] = frozenset()
        self.watches = Watches(self._presence)

    def _presence(self, uid: str) -> Presence:
        return presence_of(self._routes.routes(uid), self._usable)

    # -------------------------------------------------------------------------- Live (im)

    def typing(self, uids: Sequence[str], typing: pb.Typing) -> None:
        self._state.tell(uids, pb.Event(typing=typing))
        if self._signals:
            for idc, users in self._routes.idcs_of(uids, self._usable).items():
                queue = self._signals.get(idc)
                if queue is not None:
                    queue.add_typing(users, typing)

    def watch(self, session: Session, uids: Sequence[str]) -> list[pb.Presence]:
        device = (session.uid, session.device)
        try:
            found = self.watches.watch(device, uids, self._clock.now())
        except Full:
            raise Overloaded("too many watch others here", _FULL_RETRY_MS) from None
        rows = _rows(found)
        for row in rows:
            row.unwatched = not self.watches.watches(device, row.uid)
        return rows

    def routes(self, uid: str) -> Mapping[str, Route]:
        """Of all devices of this user, in all IDCs."""
        return self._routes.routes(uid)

    def alive(self, route: Route) -> bool:
        """Whether a session stands there, as far as is known here."""
        return not route.gone and self._usable(route.origin.idc, route.gateway)

    def forget(self, uid: str, device: str) -> None:
        self.watches.forget((uid, device))

    def devices(self, uid: str) -> list[pb.DeviceState]:
        routes = self._routes.routes(uid).items()
        newest = sorted(routes, key=lambda item: item[1].hlc, reverse=True)[:_DEVICES_MAX]
        return [
            pb.DeviceState(
                device=device,
                kind=route.kind,
                online=self.alive(route),
                idc=route.origin.idc,
                since_ms=route.hlc >> 16,
            )
            for device, route in newest
        ]

    # -------------------------------------------------------------------- from im's appliers

    def route_folded(self, origin: Origin, op: oplog.Op) -> None:
        """Of any IDC. What follows of it for sessions is the same wherever it is worked out, and
        each IDC does it to its own."""
        uid, device = op.route.uid, op.route.device
        if self._routes.apply(origin, op.hlc, op.route):
            self.watches.changed(uid)
        if op.route.gone:
            return
        if origin.idc != self._idc:
            self.forget(uid, device)
            self._state.connected_elsewhere(uid, device, op.route.connection_epoch)
        elif self._kicked.hits(uid, device, op.hlc):
            self._state.kick(uid, device, op.route.connection_epoch)
        most = self._policy.most(op.route.kind)
        if most is not None:
            for name in surplus(self._routes.routes(uid), op.route.kind, most, self._usable):
                self._kick(uid, name)

    def kick_folded(self, op: oplog.Op) -> None:
        kick = op.kick
        self._kicked.add(kick.uid, kick.device, kick.kept, op.hlc)
        for device, route in self._routes.routes(kick.uid).items():
            if not route.gone and self._kicked.hits(kick.uid, device, route.hlc):
                self._kick(kick.uid, device)

    def _kick(self, uid: str, device: str) -> None:
        route = self._routes.routes(uid)[device]
        if route.origin.idc == self._idc:
            self._state.kick(uid, device, route.connection_epoch)

    # ---------------------------------------------------------------------- from the others

    def typed_elsewhere(self, uids: Sequence[str], typing: pb.Typing) -> None:
        """Another IDC says so."""
        self._state.tell(uids, pb.Event(typing=typing))

    def turn(self) -> None:
        """Every ``TURN_S``."""
        gateways = self._gateways()
        if gateways != self._known:
            self._known = gateways
            self.watches.all_changed()
        for told in self.watches.turn(self._clock.now()):
            changed = pb.PresenceChanged(users=_rows(told.users))
            self._state.tell_devices(told.devices, pb.Event(presence=changed))


def _rows(users: Mapping[str, Presence]) -> list[pb.Presence]:
    return [
        pb.Presence(uid=uid, online=row.online, last_seen_ms=row.last_seen_ms)
        for uid, row in users.items()
    ]
