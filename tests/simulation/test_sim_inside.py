"""What the simulation looks at from inside, on worlds made by hand."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace as Made
from typing import Any, cast

import pytest

from imcore import history as h
from imcore.convert import origin_pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Origin
from services.im import keys
from services.ports import Kv
from services.route.logins import Kicked
from services.sim.inside import (
    DEAD_S,
    DeadRoutes,
    came_after_kick,
    lost_logs,
    mirrored_on,
    unfollowed,
    wrong_about_clocks,
)
from services.sim.world import World


def machine(usable: bool = False, incarnation: int = 1, epoch: int = 3, *gateways: str) -> Made:
    traffic = Made(usable=lambda idc, gateway: usable, epoch=lambda: epoch)
    node = Made(
        traffic=traffic,
        origin=Origin("fra", incarnation),
        gateways=[Made(name=name) for name in gateways],
    )
    return Made(
        node=node, registry=node, beside=[], owner=Made(paused=False), serving=True, damages=0
    )


def world(**machines: Made) -> Any:
    now = [0.0]
    made = Made(machines=machines, loop=Made(time=lambda: now[0]), now=now)
    return cast(World, made)


def test_a_gateway_that_is_gone_must_not_be_used_after_a_while() -> None:
    made = world(fra=machine(True, 1, 3, "fra-gw1.1"), iad=machine(True))
    routes = DeadRoutes(made)
    assert routes.look() == []
    made.machines["fra"].node = None
    made.now[0] = 1.0
    assert routes.look() == []
    made.now[0] = 1.0 + DEAD_S
    assert len(routes.look()) == 1
    made.machines["iad"].owner.paused = True
    assert routes.look() == []


def test_a_gateway_may_count_for_a_while_after_its_idc_has_started_again() -> None:
    made = world(fra=machine(True, 1, 3, "fra-gw1.1"), iad=machine(True))
    routes = DeadRoutes(made)
    routes.look()
    made.machines["fra"] = machine(True, 1, 3, "fra-gw1.2")
    made.now[0] = DEAD_S + 1
    assert routes.look() == []
    made.now[0] = 2 * DEAD_S + 1
    found = routes.look()
    assert len(found) == 1 and "fra-gw1.1" in found[0]


def test_an_idc_keeps_its_incarnation_unless_its_disk_was_damaged() -> None:
    made = world(fra=machine(False, 2))
    assert len(lost_logs(made)) == 1
    made.machines["fra"].damages = 1
    assert lost_logs(made) == []


def test_a_committed_policy_is_followed() -> None:
    made = world(fra=machine(False, 1, 3))
    assert unfollowed(made, 3) == []
    assert len(unfollowed(made, 4)) == 1


@pytest.mark.parametrize(
    ("skew_ms", "says", "wrong"),
    [(0, False, 0), (0, True, 1), (-900, True, 0), (900, False, 1), (500, True, 0)],
)
def test_a_clock_that_is_far_off_is_alarmed(skew_ms: int, says: bool, wrong: int) -> None:
    made = world(fra=machine(), iad=machine(), sin=machine())
    for name, each in made.machines.items():
        each.clock = Made(skew_ms=skew_ms if name == "fra" else 0)
        each.node.hlc = Made(skewed=lambda name=name: says and name == "fra")
    made.voters = list(made.machines.values())
    assert len(wrong_about_clocks(made)) == wrong


def test_an_idc_accepts_nothing_of_a_device_that_was_never_there() -> None:
    key = ClientKey("ann", "phone", "box", "d:ann:bob", 1)
    row = oplog.ClassRow()
    row.copies.add(origin=origin_pb(Origin("fra", 1)), seq=1)
    rows = [(keys.client_key(0, key), row.SerializeToString())]

    async def scan(start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return [(k, v) for k, v in rows if start <= k < end]

    def found(*idcs: str) -> list[str]:
        events: list[h.Event] = [h.Device(1, 0, "ann", "phone")]
        events += [h.Connection(2, 0, idc, "") for idc in idcs]
        return asyncio.run(mirrored_on(cast(Kv, Made(scan=scan)), 0, events))

    assert found("fra", "iad") == []
    assert len(found("iad")) == 1


def test_a_kick_meets_no_connection_that_comes_after_it() -> None:
    kicked = Kicked()
    routes = {"spare": Made(since=20)}
    live = Made(_kicked=kicked, _routes=Made(routes=lambda uid: routes))
    node = cast(Any, Made(live=live))
    assert not came_after_kick(node, "ann", "spare")  # of no kick anybody knows
    kicked.add("ann", "spare", "", 21)
    assert not came_after_kick(node, "ann", "spare")
    routes["spare"] = Made(since=22)
    assert came_after_kick(node, "ann", "spare")
    assert not came_after_kick(node, "ann", "other")
