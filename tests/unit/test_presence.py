"""Who is told when somebody comes or goes, and how little that costs."""

from __future__ import annotations

import pytest

from imcore.hlc import from_ms
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin
from services.route import presence
from services.route.presence import Full, Presence, Watches, presence_of
from services.route.table import RouteTable

FRA, IAD = Origin("fra", 1), Origin("iad", 1)


class There:
    """Routes of two IDCs, and whose gateways are good."""

    def __init__(self) -> None:
        self.table = RouteTable()
        self.out: set[str] = set()
        self.clock_ms = 1_000
        self._epoch = 0
        self.watches = Watches(
            lambda uid: presence_of(self.table.routes(uid), lambda idc, _: idc not in self.out)
        )

    def route(self, uid: str, device: str, origin: Origin = FRA, gone: bool = False) -> None:
        self._epoch += 1
        self.clock_ms += 1
        op = oplog.RouteOp(uid=uid, device=device, gateway="gw", connection=1, gone=gone)
        op.kind, op.connection_epoch = device, self._epoch
        assert self.table.apply(origin, from_ms(self.clock_ms), op)
        self.watches.changed(uid)

    def turn(self, now: float) -> dict[str, dict[str, Presence]]:
        return {
            uid: told.users for told in self.watches.turn(now) for uid, _ in sorted(told.devices)
        }


def test_presence_is_of_all_devices_in_all_idcs() -> None:
    there = There()
    assert there.watches.watch(("eve", "web"), ["ann"], 0) == {"ann": Presence()}
    there.route("ann", "phone", FRA)
    there.route("ann", "desktop", IAD)
    assert there.turn(0) == {"eve": {"ann": Presence(("desktop", "phone"))}}
    there.route("ann", "phone", FRA, gone=True)
    assert there.turn(10) == {"eve": {"ann": Presence(("desktop",))}}
    there.out.add("iad")
    there.watches.all_changed()
    assert there.turn(20) == {"eve": {"ann": Presence((), there.clock_ms)}}
    there.out.clear()
    there.watches.all_changed()
    assert there.turn(30) == {"eve": {"ann": Presence(("desktop",))}}
    there.watches.forget(("eve", "web"))
    there.route("ann", "desktop", IAD, gone=True)
    assert there.turn(40) == {} and len(there.watches) == 0


def test_presence_does_not_eat_the_cpu() -> None:
    """10,000 comings and goings of users whom a hundred watch, and as many of whom nobody does."""
    there = There()
    users = [f"user{number}" for number in range(10)]
    for number in range(100):
        there.watches.watch((f"eve{number}", "web"), users, 0)
    before = there.watches.looks
    now = 0.0
    for step in range(10_000):
        there.route(users[step % 10], "phone", gone=bool(step // 10 % 2))
        there.route(f"stranger{step % 10}", "phone", gone=bool(step // 10 % 2))
        if step % 100 == 0:
            now += 0.1
            there.watches.turn(now)
    turns = now / presence.HOLD_S + 1
    assert there.watches.looks - before <= turns * len(users)
    assert there.watches.events <= turns + 1  # all hundred are told by one event
    quiet = there.watches.looks, there.watches.events
    for _ in range(100):
        now += 10
        there.watches.turn(now)
    assert there.watches.looks - quiet[0] <= len(users)
    assert there.watches.events - quiet[1] <= 1


def test_who_is_back_before_it_was_told_was_never_away() -> None:
    there = There()
    there.route("ann", "phone")
    there.watches.watch(("eve", "web"), ["ann"], 0)
    there.route("ann", "phone", gone=True)
    there.route("ann", "phone")
    assert there.turn(1) == {}


def test_who_begins_to_watch_between_two_changes_learns_of_the_second() -> None:
    there = There()
    there.route("ann", "phone")
    there.watches.watch(("eve", "web"), ["ann"], 0)
    there.route("ann", "phone", gone=True)
    assert not there.watches.watch(("mia", "web"), ["ann"], 0)["ann"].online
    there.route("ann", "phone")
    assert there.turn(1)["mia"] == {"ann": Presence(("phone",))}


def test_watches_are_bounded_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    there = There()
    monkeypatch.setattr(presence, "WATCHERS_MAX", 2)
    monkeypatch.setattr(presence, "WATCHES_MAX", 4)
    for number in range(3):
        there.watches.watch((f"eve{number}", "web"), ["ann"], 0)
    assert not there.watches.watches(("eve2", "web"), "ann") and len(there.watches) == 2
    with pytest.raises(Full):
        there.watches.watch(("mia", "web"), ["a", "b", "c"], 0)
    there.watches.watch(("eve0", "web"), ["ann", "bob"], presence.LEASE_S / 2)
    there.turn(presence.LEASE_S)
    assert len(there.watches) == 2
    there.turn(2 * presence.LEASE_S)
    assert len(there.watches) == 0 and not there.watches._told and not there.watches._watchers


def test_a_turn_does_no_more_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    there = There()
    monkeypatch.setattr(presence, "LOOKS_MAX", 2)
    there.watches.watch(("eve", "web"), ["a", "b", "c"], 0)
    for uid in ("a", "b", "c"):
        there.route(uid, "phone")
    assert list(there.turn(1)["eve"]) == ["a", "b"]
    assert list(there.turn(2)["eve"]) == ["c"]
