"""Sessions that nobody could be told of, at a front without a link, are judged when they can be."""

from __future__ import annotations

import pytest

from imcore.proto import oplog_pb2 as oplog
from imcore.region.model import Devices
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.ports import Session
from services.route.live import LiveRoutes
from services.route.table import RouteTable

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
Said = tuple[str, str, int]


class State:
    """What was commanded."""

    def __init__(self) -> None:
        self.said: list[Said] = []

    def connected_elsewhere(self, uid: str, device: str, epoch: int) -> None:
        self.said.append(("elsewhere", device, epoch))

    def kick(self, uid: str, device: str, epoch: int) -> None:
        self.said.append(("kick", device, epoch))


class Seen:
    """The route role of fra, and what it did on what was folded before a front had its link."""

    def __init__(self, phones: int | None = None) -> None:
        self.state = State()
        self.usable = {("fra", "gw"), ("iad", "gw")}
        self.live = LiveRoutes(
            "fra", RouteTable(), lambda idc, gateway: (idc, gateway) in self.usable,
            lambda: frozenset(self.usable), self.state,  # type: ignore[arg-type]
            {}, SystemClock(), Devices(phone=phones),
        )  # fmt: skip

    def route(
        self, hlc: int, epoch: int, device: str = "p", origin: Origin = FRA, gone: bool = False,
        since: int = 0,
    ) -> None:  # fmt: skip
        route = oplog.RouteOp(
            uid="ann", device=device, connection_epoch=epoch, gateway="gw", gone=gone,
            kind="phone", since_hlc=since,
        )  # fmt: skip
        self.live.route_folded(origin, oplog.Op(hlc=hlc, route=route))

    def kick(self, hlc: int, device: str = "", kept: str = "") -> None:
        kick = oplog.KickOp(uid="ann", device=device, kept=kept)
        self.live.kick_folded(oplog.Op(hlc=hlc, kick=kick))

    def stood(self, epoch: int, device: str = "p", since: int = 0) -> tuple[bool, list[Said]]:
        self.state.said.clear()
        session = Session("s", "ann", device, epoch, "gw", 1, since_hlc=since, kind="phone")
        return self.live.stood(session), self.state.said


def test_one_that_nothing_has_ended_stands():
    seen = Seen(phones=1)
    seen.route(10, 1)
    assert seen.stood(1) == (True, [])


def test_a_device_that_went_elsewhere():
    seen = Seen()
    seen.route(10, 1)
    seen.route(20, 2, origin=IAD)
    assert seen.stood(1) == (True, [("elsewhere", "p", 2)])


def test_kicks_meet_what_connected_before_them():
    seen = Seen()
    seen.route(10, 1)
    seen.kick(9)
    assert seen.stood(1) == (True, [])
    seen.kick(20, kept="p")
    assert seen.stood(1) == (True, [])
    seen.kick(30, "p")
    assert seen.stood(1) == (True, [("kick", "p", 1)])


def test_one_whose_route_was_lost_is_judged_by_when_it_connected_and_gets_one():
    seen = Seen()
    seen.kick(20)
    assert seen.stood(1, since=21) == (False, [])
    assert seen.stood(1, since=19) == (False, [("kick", "p", 1)])
    assert seen.stood(1, since=0) == (False, [])  # an older program did not say when
    seen.route(10, 1, gone=True)  # of the connection before
    assert seen.stood(2, since=21) == (False, [])


def test_a_kick_meets_also_the_connection_that_a_device_has_left_behind():
    seen = Seen()
    seen.route(10, 2, origin=IAD)
    seen.kick(20)
    seen.route(21, 2, origin=IAD, gone=True)
    assert seen.stood(1, since=5) == (True, [("kick", "p", 1)])


@pytest.mark.parametrize("since", [0, 5])
def test_a_route_that_is_logged_late_counts_from_when_its_device_connected(since):
    seen = Seen()
    seen.kick(20)
    seen.route(30, 1, since=since)
    assert seen.state.said == ([("kick", "p", 1)] if since else [])
    seen.route(40, 2, "q", since=since)
    seen.kick(35)
    assert (("kick", "q", 2) in seen.state.said) == bool(since)


def test_one_login_too_many():
    seen = Seen(phones=1)
    seen.route(10, 1)
    seen.route(20, 2, "new", IAD)
    assert seen.stood(1) == (True, [("kick", "p", 1)])
    assert seen.stood(2, "new") == (True, [])


def test_one_login_too_many_where_no_gateway_is_known_yet():
    """A core that has just started: also its own gateways' leases have ended meanwhile."""
    seen = Seen(phones=1)
    seen.usable = set()
    seen.route(10, 1)
    seen.route(20, 2, "new", IAD)
    assert seen.stood(1) == (True, [])
    seen.live.turn()
    assert not seen.state.said
    seen.usable = {("iad", "gw")}
    seen.live.turn()
    assert seen.state.said == [("kick", "p", 1)]


def test_kicks_of_an_earlier_life_are_known():
    seen = Seen()
    seen.route(10, 1)
    kick = oplog.KickOp(uid="ann", device="p")
    seen.live.kicks_known([oplog.Op(hlc=20, kick=kick)])
    assert seen.stood(1) == (True, [("kick", "p", 1)])


def test_a_kick_meets_sessions_whose_routes_no_log_has_taken_yet():
    seen = Seen()
    epochs = {"old": (1, 10, 0), "told late": (2, 30, 10), "new": (3, 30, 0)}
    lost = [
        oplog.Op(
            hlc=hlc,
            route=oplog.RouteOp(uid="ann", device=name, connection_epoch=epoch, since_hlc=since),
        )
        for name, (epoch, hlc, since) in epochs.items()
    ]
    seen.live.unrouted = lambda uid: lost if uid == "ann" else []
    seen.kick(20)
    assert seen.state.said == [("kick", "old", 1), ("kick", "told late", 2)]
