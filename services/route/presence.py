"""Who is told when somebody comes or goes. Pure, and cheap by design.

A change of a user whom nobody watches costs one look into a dictionary. One who is watched is
looked at no more often than every ``HOLD_S``, whatever his connections do meanwhile, and his
watchers are told only when what they would be told differs from what they were told last. All that
changes in one turn goes to a device as one event, and devices that are told the same share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from services.route.table import Route

HOLD_S = 3.0  # between two looks at one user
LEASE_S = 600.0  # a watch that is not renewed ends
WATCHERS_MAX = 1_000  # devices that are told of one user
WATCHES_MAX = 500_000  # pairs of device and user, in one IDC
LOOKS_MAX = 1_000  # in one turn; the others have theirs in the next

Device = tuple[str, str]  # uid, device


class Presence(NamedTuple):
    """Of one user, by all his devices in all IDCs. ``online``: their kinds, each once, sorted."""

    online: tuple[str, ...] = ()
    last_seen_ms: int = 0  # on the wall clock; 0 while online, or when he was never seen


class Told(NamedTuple):
    """One event for these devices."""

    devices: list[Device]
    users: dict[str, Presence]


class Full(Exception):
    """Nobody else can watch anybody now."""


def presence_of(routes: Mapping[str, Route], usable: Callable[[str, str], bool]) -> Presence:
    """``usable(idc, gateway)``: as of ``RouteTable.idcs_of``. A lost IDC tells no end of its
    sessions: then the last connect counts as when the user was seen."""
    online = {
        route.kind
        for route in routes.values()
        if not route.gone and usable(route.origin.idc, route.gateway)
    }
    if online:
        return Presence(tuple(sorted(online)))
    return Presence((), max((route.hlc >> 16 for route in routes.values()), default=0))


class Watches:
    """``look``: what a user's presence is now."""

    def __init__(self, look: Callable[[str], Presence]) -> None:
        self._look = look
        self._watched: OrderedDict[Device, tuple[float, tuple[str, ...]]] = OrderedDict()
        self._watchers: dict[str, dict[Device, None]] = {}
        self._told: dict[str, Presence | None] = {}  # None: not the same to all
        self._looked: dict[str, float] = {}
        self._dirty: dict[str, None] = {}
        self._pairs = 0
        self.looks = 0
        self.events = 0

    def __len__(self) -> int:
        """Pairs of device and user."""
        return self._pairs

    def watch(self, device: Device, uids: Sequence[str], now: float) -> dict[str, Presence]:
        """In place of what this device watched before. Raises Full."""
        self.forget(device)
        if self._pairs + len(uids) > WATCHES_MAX:
            raise Full
        taken, found = [], {}
        for uid in uids:
            found[uid] = presence = self._look(uid)
            self.looks += 1
            watchers = self._watchers.get(uid)
            if watchers is None:
                watchers = self._watchers[uid] = {}
                self._told[uid] = presence
            elif len(watchers) >= WATCHERS_MAX:
                continue
            elif presence != self._told[uid]:
                # The others have not been told yet, and should it change back they need not be.
                self._told[uid] = None
                self._dirty[uid] = None
            watchers[device] = None
            taken.append(uid)
        self._pairs += len(taken)
        self._watched[device] = (now + LEASE_S, tuple(taken))
        return found

    def watches(self, device: Device, uid: str) -> bool:
        return device in self._watchers.get(uid, ())

    def forget(self, device: Device) -> None:
        _, uids = self._watched.pop(device, (0.0, ()))
        self._pairs -= len(uids)
        for uid in uids:
            watchers = self._watchers[uid]
            del watchers[device]
            if not watchers:
                del self._watchers[uid], self._told[uid]
                self._looked.pop(uid, None)
                self._dirty.pop(uid, None)

    def changed(self, uid: str) -> None:
        """A route of this user has come or gone."""
        if uid in self._watchers:
            self._dirty[uid] = None

    def all_changed(self) -> None:
        """Gateways, or an IDC, have come or gone, and with them the routes there."""
        self._dirty.update(dict.fromkeys(self._watchers))

    def turn(self, now: float) -> list[Told]:
        """What is to be told, by a clock that never goes back."""
        while self._watched and next(iter(self._watched.values()))[0] <= now:
            self.forget(next(iter(self._watched)))
        news: dict[Device, list[str]] = {}
        changed: dict[str, Presence] = {}
        for uid in self._ripe(now):
            del self._dirty[uid]
            self._looked[uid] = now
            self.looks += 1
            presence = self._look(uid)
            if presence != self._told[uid]:
                self._told[uid] = changed[uid] = presence
                for device in self._watchers[uid]:
                    news.setdefault(device, []).append(uid)
        alike: dict[tuple[str, ...], list[Device]] = {}
        for device, uids in news.items():
            alike.setdefault(tuple(uids), []).append(device)
        self.events += len(alike)
        return [Told(devices, {u: changed[u] for u in uids}) for uids, devices in alike.items()]

    def _ripe(self, now: float) -> Iterable[str]:
        looked = self._looked
        ripe = [uid for uid in self._dirty if now - looked.get(uid, -HOLD_S) >= HOLD_S]
        return ripe[:LOOKS_MAX]
