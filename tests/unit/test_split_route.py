"""What fronts are told does not depend on the way: directly, or by route instances."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest

from imcore.errors import Unavailable
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.ports import Audience
from services.split.audiences import Named
from services.split.fronts import Fronts
from services.split.links import FrontLink, RouteLink
from services.split.pipe import Pipe
from services.split.route import Route
from services.split.ways import choose

FRA = Origin("fra", 1)
USERS = [f"u{number:02}" for number in range(12)]
NAMING = {"push", "behind", "signal", "tell_users", "cursor"}  # users, or an audience
FRONTS = [f"gw{number}" for number in range(5)]


class Idc:
    """A core, its route instances and its fronts, with every stream carried by hand: what is put
    into a pipe arrives when ``carry`` says so."""

    def __init__(self, routes: int) -> None:
        self.core = Fronts("fra", pb.Stamp, lambda: 1, lambda: 0, lambda: b"t", SystemClock(),
                           Limits())  # fmt: skip
        self.core.origin = FRA
        self.routes = [self._route(number) for number in range(routes)]
        self.links: dict[str, FrontLink] = {}
        # With who was there at that time: to others the front tells nothing.
        self.told: dict[str, list[tuple[front.Down, Collection[str]]]] = defaultdict(list)
        for number, name in enumerate(FRONTS):
            self.link(name, number)

    def _route(self, number: int) -> tuple[Route, RouteLink]:
        route = Route("fra", f"route{number}", None)  # type: ignore[arg-type]
        route._up = Pipe()
        link = RouteLink(route.name, Pipe())
        self.core._add_route(link)
        return route, link

    def link(self, name: str, number: int) -> None:
        """The front begins, without sessions."""
        hello, pipe = front.Hello(gateway=name, port=7, grows=True), Pipe[front.Down]()
        self.carry()
        self.told[name].append((front.Down(left=True), ()))
        if self.routes:
            route, _ = self.routes[number % len(self.routes)]
            self.links[name] = route._add(hello, pipe)
            route._take(self.links[name], [front.Up(hello=hello)])
        else:
            self.links[name] = FrontLink(hello, pipe)
            self.core._add(self.links[name])

    def unlink(self, name: str) -> None:
        link = self.links.pop(name)
        if self.routes:
            self._route_of(link)._remove(link)
        else:
            self.core._remove(link)

    def change(self, name: str, uid: str, device: str, epoch: int, over: bool) -> None:
        caller = front.Caller(id=f"{name}.{uid}.{device}", uid=uid, device=device,
                              connection_epoch=epoch)  # fmt: skip
        change = front.SessionChange(caller=caller, shard="eu", connected=not over, over=over)
        link, item = self.links[name], front.Up(session=change)
        if self.routes:
            self._route_of(link)._take(link, [item])
        else:
            self.core._up(link, item)

    def _route_of(self, link: FrontLink) -> Route:
        return next(route for route, _ in self.routes if link in route.fronts.values())

    def carry(self) -> None:
        for route, link in self.routes:
            self.core._take(link, _taken(route._up))
        for route, link in self.routes:
            for item in _taken(link.pipe):
                route._down(item, item.WhichOneof("body") or "")
        for name, here in self.links.items():
            assert isinstance(here.pipe, Pipe)
            self.told[name] += [(item, frozenset(here.devices)) for item in _taken(here.pipe)]


def _taken(pipe: Pipe[Any]) -> list[Any]:
    items = list[Any]()
    while pipe._items:
        items += pipe._take()
    return items


def heard(told: Sequence[tuple[front.Down, Collection[str]]]) -> list[tuple[str, str, list[str]]]:
    """Of what a front was told, what its clients hear of it: kind, content, and which users."""
    named, found = Named(grows=True), list[tuple[str, str, list[str]]]()
    for item, here in told:
        kind = item.WhichOneof("body") or ""

        def of_them(uids: Iterable[str], here: Collection[str] = here) -> list[str]:
            return sorted({uid for uid in uids if uid in here})

        if kind == "left":
            named = Named(grows=True)
        elif kind == "audience":
            named.told(item.audience)
        elif kind == "push" and item.push.audience:
            audience = named.of(item.push.audience)
            found.append((kind, content(item.push.entries), of_them(everyone(audience))))
        elif kind == "push":
            found.append((kind, content(item.push.entries), of_them(item.push.uids)))
        elif kind == "behind":
            found += [
                (kind, group.heads.conversation, of_them(everyone(named.of(group.audience))))
                for group in item.behind.groups
            ]
        elif kind in ("signal", "tell_users"):
            found.append((kind, "", of_them(getattr(item, kind).uids)))
        elif kind == "cursor":
            found.append((kind, "", of_them([item.cursor.uid])))
        elif kind in ("replicated", "elsewhere", "accepted", "tell_devices", "move"):
            found.append((kind, str(getattr(item, kind)), []))
    return [each for each in found if each[2] or each[0] not in NAMING]


def everyone(audience: Audience) -> list[str]:
    return [*audience.uids, *audience.joined]


def content(entries: Iterable[pb.Entry]) -> str:
    return ",".join(entry.message.content.decode() for entry in entries)


def entry(text: str) -> pb.Entry:
    made = pb.Entry(seq=1)
    made.message.content = text.encode()
    return made


@pytest.mark.parametrize("seed", range(12))
def test_every_front_is_told_the_same_in_the_same_order_by_whatever_way(seed: int) -> None:
    rng = random.Random(seed)
    ways = [Idc(0), Idc(1), Idc(2), Idc(3)]
    groups = [Audience("g:huge", tuple(USERS[:9])), Audience("g:other", tuple(USERS[4:]))]
    for step in range(400):
        kind = rng.choice(("change",) * 4 + ("push", "group", "behind", "signal", "tell", "cursor",
                           "devices", "replicated", "regroup", "relink"))  # fmt: skip
        uids, name, device = rng.sample(USERS, rng.randint(1, 6)), rng.choice(FRONTS), "phone"
        audience, over, rare = rng.choice(groups), rng.random() < 0.4, rng.random() < 0.1
        if kind == "regroup":
            members = tuple(sorted(rng.sample(USERS, 8)))
            groups[groups.index(audience)] = Audience(audience.conversation, members)
        for idc in ways:
            core = idc.core
            if kind == "change":
                idc.change(name, uids[0], device, step + 1, over)
            elif kind == "push":
                core.push_entries("c", uids, [entry(str(step))], {FRA: step}, 0)
            elif kind == "group":
                core.push_group(audience, [entry(str(step))], {FRA: step}, 0, True)
            elif kind == "behind":
                core.tell_behind([(one, {FRA: step}, 0) for one in groups], 50)
            elif kind == "signal":
                core.signal(uids, "c", {FRA: step})
            elif kind == "tell":
                core.tell(uids, pb.Event(missed=pb.Missed()))
            elif kind == "cursor":
                core.cursor_moved(uids[0], pb.CursorMoved(conversation="c"))
            elif kind == "devices":
                core.tell_devices([(uid, device) for uid in uids], pb.Event(missed=pb.Missed()))
            elif kind == "replicated":
                core.replicated(FRA, 1, step)
            elif kind == "relink" and rare:
                idc.unlink(name)
                idc.link(name, FRONTS.index(name))
            idc.carry()
    straight, *routed = ([heard(idc.told[name]) for name in FRONTS] for idc in ways)
    assert sum(map(len, straight)) > 300
    for each in routed:
        assert each == straight
    for idc in ways:
        assert {row.session for row in idc.core.sessions()} == {
            row.session for row in ways[0].core.sessions()
        }


def test_the_core_says_once_to_a_route_instance_what_is_for_many_fronts() -> None:
    idc = Idc(2)
    for number, uid in enumerate(USERS[:10]):
        idc.change(FRONTS[number % 5], uid, "phone", 1, False)
    idc.carry()
    idc.core.push_entries("c", USERS, [entry("hi")], {FRA: 1}, 0)
    waiting = [_taken(link.pipe) for _, link in idc.routes]
    assert [len(items) for items in waiting] == [1, 1]
    assert sorted(uid for (item,) in waiting for uid in item.push.uids) == USERS[:10]


def test_a_front_of_a_route_instance_that_says_rubbish_costs_only_its_own_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idc = Idc(1)
    idc.carry()
    bad, good = idc.links["gw0"], idc.links["gw1"]
    (_, link) = idc.routes[0]

    def fails(*_: object) -> None:
        raise ValueError("rubbish")

    monkeypatch.setattr(idc.core, "_loaded", fails)
    idc.core._take(link, [front.Up(front=bad.number, load=front.Load())])
    assert sorted(each.name for each in idc.core.gateways) == FRONTS[1:]
    idc.carry()
    assert bad.pipe.closed and not good.pipe.closed


def test_a_route_instance_that_loses_its_core_ends_the_links_of_its_fronts() -> None:
    idc = Idc(1)
    idc.carry()
    route, link = idc.routes[0]
    route.linked.set()
    idc.core._remove_route(link)
    assert idc.core.gateways == [] and idc.core.routes == []
    route._lost()
    assert all(each.pipe.closed for each in idc.links.values())
    assert not route.linked.is_set()


def test_a_gateway_that_comes_again_by_another_way_takes_the_place_of_its_former_link() -> None:
    idc = Idc(2)
    idc.change("gw0", "ann", "phone", 1, False)
    idc.carry()
    hello, pipe = front.Hello(gateway="gw0", port=7), Pipe[front.Down]()
    idc.core._add(FrontLink(hello, pipe))
    assert sorted(each.name for each in idc.core.gateways) == FRONTS
    assert idc.core.sessions() == []
    idc.core.signal(["ann"], "c", {FRA: 1})
    idc.carry()
    assert heard(idc.told["gw0"]) == []
    assert idc.links["gw0"].pipe.closed


def test_gateways_spread_over_route_instances_and_one_that_goes_leaves_its_own_to_all() -> None:
    live = {f"route{number}": f"127.0.0.1:{number}" for number in range(4)}
    gateways = [f"fra-gw{number}" for number in range(400)]
    before = {gateway: choose(gateway, live) for gateway in gateways}
    counts = [sum(1 for found in before.values() if found == row) for row in live.items()]
    assert min(counts) > 60
    del live["route2"]
    after = {gateway: choose(gateway, live) for gateway in gateways}
    moved = [gateway for gateway in gateways if after[gateway] != before[gateway]]
    assert all(before[gateway] == ("route2", "127.0.0.1:2") for gateway in moved)
    assert choose("fra-gw1", {}) is None


def test_a_number_that_nobody_was_named_by_is_refused() -> None:
    with pytest.raises(Unavailable, match="audience 3"):
        Named().of(3)
    with pytest.raises(Unavailable, match="audience 3"):
        Named().told(front.Audience(number=3, uids=["ann"], joined=True))
