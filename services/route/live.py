"""The shell around presence, typing and logins: implements ``Live`` towards im."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
        # Devices that have too many newer ones, if these are where no gateway is known yet.
        self._doubtful: dict[tuple[str, str], None] = {}
        # Of a user: routes of sessions here that the log has not taken yet.
        self.unrouted: Callable[[str], Sequence[oplog.Op]] = lambda uid: ()

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

    def stood(self, session: Session) -> bool:
        uid, device, epoch = session.uid, session.device, session.connection_epoch
        route = self._routes.routes(uid).get(device)
        if route is not None and route.connection_epoch > epoch and not route.gone:
            self._state.connected_elsewhere(uid, device, route.connection_epoch)
            return True
        written = route is not None and route.connection_epoch == epoch and not route.gone
        since = route.since if route is not None and written else session.since_hlc
        if since and self._kicked.hits(uid, device, since):  # 0: an older program did not say
            self._state.kick(uid, device, epoch)
        elif written:
            self._judge_surplus(uid, device)
        return route is not None and route.connection_epoch >= epoch

    def is_over(self, session: Session) -> bool:
        route = self._routes.routes(session.uid).get(session.device)
        if route is None or route.connection_epoch < session.connection_epoch:
            return False
        newer = route.connection_epoch > session.connection_epoch
        return newer or route.gone or route.origin.idc != self._idc

    def _judge_surplus(self, uid: str, device: str) -> None:
        """Of a device that has a session here, whatever is known of its gateway."""
        routes = self._routes.routes(uid)
        own = routes[device]
        most = self._policy.most(own.kind)
        if most is None:
            return

        def usable(idc: str, gateway: str) -> bool:
            return (idc, gateway) == (own.origin.idc, own.gateway) or self._usable(idc, gateway)

        if device in surplus(routes, own.kind, most, usable):
            self._kick(uid, device)
        elif device in surplus(routes, own.kind, most, lambda idc, gateway: True):
            self._doubtful[uid, device] = None

    def _judge_doubtful(self) -> None:
        doubtful, self._doubtful = self._doubtful, {}
        for uid, device in doubtful:
            route = self._routes.routes(uid).get(device)
            if route is not None and not route.gone and route.origin.idc == self._idc:
                self._judge_surplus(uid, device)

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
                since_ms=route.since >> 16,
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
        elif self._kicked.hits(uid, device, op.route.since_hlc or op.hlc):
            self._state.kick(uid, device, op.route.connection_epoch)
        most = self._policy.most(op.route.kind)
        if most is not None:
            for name in surplus(self._routes.routes(uid), op.route.kind, most, self._usable):
                self._kick(uid, name)

    def kick_folded(self, op: oplog.Op) -> None:
        kick = op.kick
        self._kicked.add(kick.uid, kick.device, kick.kept, op.hlc)
        for device, route in self._routes.routes(kick.uid).items():
            if not route.gone and self._kicked.hits(kick.uid, device, route.since):
                self._kick(kick.uid, device)
        for known in self.unrouted(kick.uid):
            route_op = known.route
            if not route_op.gone and self._kicked.hits(
                kick.uid, route_op.device, route_op.since_hlc or known.hlc
            ):
                self._state.kick(kick.uid, route_op.device, route_op.connection_epoch)

    def kicks_known(self, ops: Iterable[oplog.Op]) -> None:
        """Folded by an earlier life, which may not have told them."""
        for op in sorted(ops, key=lambda op: op.hlc):
            self._kicked.add(op.kick.uid, op.kick.device, op.kick.kept, op.hlc)

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
            self._judge_doubtful()
        for told in self.watches.turn(self._clock.now()):
            changed = pb.PresenceChanged(users=_rows(told.users))
            self._state.tell_devices(told.devices, pb.Event(presence=changed))


def _rows(users: Mapping[str, Presence]) -> list[pb.Presence]:
    return [
        pb.Presence(uid=uid, online=row.online, last_seen_ms=row.last_seen_ms)
        for uid, row in users.items()
    ]
