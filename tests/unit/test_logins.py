"""Which sessions must end."""

from __future__ import annotations

import pytest

from imcore.words import Origin
from services.route import logins
from services.route.logins import Kicked, surplus
from services.route.table import Route

FRA, IAD = Origin("fra", 1), Origin("iad", 1)


def route(hlc: int, kind: str = "phone", origin: Origin = FRA, gone: bool = False) -> Route:
    return Route(1, hlc, origin, "gw", 1, gone, kind)


def test_the_oldest_of_its_kind_goes() -> None:
    routes = {
        "old": route(1), "pad": route(2, "tablet"), "gone": route(3, gone=True),
        "new": route(4, origin=IAD), "newest": route(5),
    }  # fmt: skip

    def everywhere(idc: str, gateway: str) -> bool:
        return True

    assert surplus(routes, "phone", 3, everywhere) == []
    assert surplus(routes, "phone", 2, everywhere) == ["old"]
    assert surplus(routes, "phone", 1, everywhere) == ["new", "old"]
    # Those of a lost IDC count no more.
    assert surplus(routes, "phone", 2, lambda idc, _: idc != "iad") == []


def test_a_kick_meets_what_connected_before_it() -> None:
    kicked = Kicked()
    kicked.add("ann", "phone", "", 10)
    assert kicked.hits("ann", "phone", 9) and not kicked.hits("ann", "phone", 10)
    assert not kicked.hits("ann", "web", 9) and not kicked.hits("bob", "phone", 9)
    kicked.add("ann", "", "web", 20)
    assert kicked.hits("ann", "phone", 19) and kicked.hits("ann", "pad", 1)
    assert not kicked.hits("ann", "web", 19)
    kicked.add("ann", "", "phone", 15)  # folded later, and older
    assert not kicked.hits("ann", "web", 14)


def test_kicks_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "KEPT_MAX", 2)
    kicked = Kicked()
    for hlc, uid in enumerate(("ann", "bob", "eve"), 1):
        kicked.add(uid, "phone", "", hlc)
    assert [kicked.hits(uid, "phone", 0) for uid in ("ann", "bob", "eve")] == [False, True, True]
