"""The shell around presence and typing: implements ``Live`` towards im."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from imcore.errors import Overloaded
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from services.ports import Pushes, Session
from services.route.presence import Full, Presence, Watches, presence_of
from services.route.signals import SignalQueue
from services.route.table import RouteTable

TURN_S = 1.0
_FULL_RETRY_MS = 5_000


class LiveRoutes:
    """``usable``, ``gateways``: whether a route by a gateway of an IDC is good now, and all such
    gateways. ``signals``: to the other IDCs."""

    def __init__(
        self,
        routes: RouteTable,
        usable: Callable[[str, str], bool],
        gateways: Callable[[], frozenset[tuple[str, str]]],
        pushes: Pushes,
        signals: Mapping[str, SignalQueue],
        clock: Clock,
    ) -> None:
        self._routes = routes
        self._usable = usable
        self._gateways = gateways
        self._pushes = pushes
        self._signals = signals
        self._clock = clock
        self._known: frozenset[tuple[str, str]] = frozenset()
        self.watches = Watches(self._presence)

    def _presence(self, uid: str) -> Presence:
        return presence_of(self._routes.routes(uid), self._usable)

    # -------------------------------------------------------------------------- Live (im)

    def typing(self, uids: Sequence[str], typing: pb.Typing) -> None:
        self._pushes.tell(uids, pb.Event(typing=typing))
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

    def forget(self, uid: str, device: str) -> None:
        self.watches.forget((uid, device))

    # ---------------------------------------------------------------------- from the others

    def typed_elsewhere(self, uids: Sequence[str], typing: pb.Typing) -> None:
        """Another IDC says so."""
        self._pushes.tell(uids, pb.Event(typing=typing))

    def turn(self) -> None:
        """Every ``TURN_S``."""
        gateways = self._gateways()
        if gateways != self._known:
            self._known = gateways
            self.watches.all_changed()
        for told in self.watches.turn(self._clock.now()):
            changed = pb.PresenceChanged(users=_rows(told.users))
            self._pushes.tell_devices(told.devices, pb.Event(presence=changed))


def _rows(users: Mapping[str, Presence]) -> list[pb.Presence]:
    return [
        pb.Presence(uid=uid, online=row.online, last_seen_ms=row.last_seen_ms)
        for uid, row in users.items()
    ]
