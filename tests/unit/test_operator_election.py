"""How the lease is kept at an API server that is slow, or away for a moment; in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from imcore.errors import Unavailable
from imctl.reconcile.cluster import Conflict
from imctl.reconcile.election import Election
from imctl.reconcile.lease import RENEW_WITHIN_S, Leadership, NotLeading
from imctl.reconcile.run import leaderships_of
from services.sim.loop import SimLoop


class LoopClock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_ms(self) -> int:
        return int(self.now() * 1000)

    def cpu(self) -> float:
        return 0.0


class Server:
    """One Lease. ``takes_s``: each call, of which half is the way back; ``away``: from when to when
    it reads no request. What was sent is done, whether or not somebody waits for its answer."""

    def __init__(self, takes_s: float = 0.01, away: tuple[float, float] = (0, 0)) -> None:
        self.takes_s, self.away = takes_s, away
        self.lease: Any = None
        self.version = 0
        self.calls = 0

    async def get(
        self, api: str, kind: str, namespace: str, name: str, limit_s: float = 5.0
    ) -> Any:
        return await self._call(lambda: self.lease, limit_s)

    async def write(self, body: Any, limit_s: float) -> Any:
        return await self._call(lambda: self._take(body), limit_s)

    def _take(self, body: Any) -> Any:
        has = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if body["metadata"].get("resourceVersion") != has:
            raise Conflict("another version")
        self.version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        self.lease = {**body, "metadata": metadata}
        return self.lease

    async def _call(self, work: Any, limit_s: float) -> Any:
        self.calls += 1
        answering = asyncio.ensure_future(self._answer(work))
        try:
            async with asyncio.timeout(limit_s):
                return await asyncio.shield(answering)
        except TimeoutError:
            answering.add_done_callback(lambda done: done.exception())
            raise Unavailable("no answer") from None

    async def _answer(self, work: Any) -> Any:
        now = asyncio.get_running_loop().time()
        if self.away[0] <= now < self.away[1]:
            await asyncio.sleep(self.away[1] - now)
        await asyncio.sleep(self.takes_s / 2)
        try:
            return work()
        finally:
            await asyncio.sleep(self.takes_s / 2)


def simulated(work: Coroutine[Any, Any, Any]) -> Any:
    loop = SimLoop(1)
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def candidate(server: Any, name: str = "a") -> Election:
    return Election(Leadership(name, "ns", "op"), server, LoopClock())


class Places:
    """Leases by namespace."""

    def __init__(self, *namespaces: str) -> None:
        self.servers = {each: Server() for each in namespaces}

    async def get(
        self, api: str, kind: str, namespace: str, name: str, limit_s: float = 5.0
    ) -> Any:
        return await self.servers[namespace].get(api, kind, namespace, name, limit_s)

    async def write(self, body: Any, limit_s: float) -> Any:
        return await self.servers[body["metadata"]["namespace"]].write(body, limit_s)


@pytest.mark.parametrize(
    ("namespaces", "leases"),
    [
        ([], [("a", "imctl-operator"), ("default", "imctl-operator-of-all-namespaces")]),
        (["im-fra"], [("a", "imctl-operator")]),
    ],
)
def test_who_works_in_all_namespaces_needs_a_lease_that_all_of_those_have_in_common(
    namespaces: list[str], leases: list[tuple[str, str]]
) -> None:
    found = leaderships_of("one", "a", "default", namespaces)
    assert [(each.namespace, each.name) for each in found] == leases


class Release:
    """A replica of one that works in all namespaces."""

    def __init__(self, places: Places, namespace: str, name: str) -> None:
        own = Election(Leadership(name, namespace, "op"), places, LoopClock())
        every = Leadership(name, "default", "all")
        self.last = Election(every, places, LoopClock(), own)
        self.running = [asyncio.ensure_future(each.run()) for each in (own, self.last)]

    def end(self) -> None:
        for each in self.running:
            each.cancel()


def test_of_two_releases_that_work_in_all_namespaces_one_leads(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> None:
        places = Places("a", "b", "default")
        one = Release(places, "a", "one")
        await one.last.leads.wait()
        two = Release(places, "b", "two")
        await asyncio.sleep(60)
        assert one.last.leading() and not two.last.leading()
        assert places.servers["b"].lease["spec"]["holderIdentity"] == "two"
        told = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
        (said,) = told
        assert "one holds the Lease default/all" in said
        one.end()
        began = LoopClock().now()
        await two.last.leads.wait()
        assert LoopClock().now() - began < 15
        two.end()

    simulated(work())


@pytest.mark.parametrize("killed", [1.0, 3.7, 6.01])
def test_a_replica_follows_as_soon_with_two_leases_as_with_one(
    caplog: pytest.LogCaptureFixture, killed: float
) -> None:
    """And none holds the one while it waits for the other."""

    async def work() -> float:
        places = Places("a", "default")
        first = Release(places, "a", "first")
        await first.last.leads.wait()
        second = Release(places, "a", "second")
        await asyncio.sleep(killed)
        assert places.servers["default"].lease["spec"]["holderIdentity"] == "first"
        first.end()
        began = LoopClock().now()
        await second.last.leads.wait()
        second.end()
        return LoopClock().now() - began

    assert simulated(work()) < 15
    assert not [each for each in caplog.records if each.levelname == "ERROR"]


async def leads_without_a_break(server: Server, seconds: float) -> float:
    """How long it might still write at the worst moment. Raises NotLeading."""
    election = candidate(server)
    running = asyncio.ensure_future(election.run())
    async with asyncio.timeout(60):
        await election.leads.wait()
    least = 99.0
    until = LoopClock().now() + seconds
    while LoopClock().now() < until and not running.done():
        least = min(least, election.leadership.left(LoopClock().now()))
        await asyncio.sleep(0.1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return least


@pytest.mark.parametrize("takes_s", [0.01, 1.0, 2.4, 2.9])
def test_a_server_that_is_slow_at_each_call_ends_nobody(takes_s: float) -> None:
    assert simulated(leads_without_a_break(Server(takes_s), 120)) > 0


@pytest.mark.parametrize("begins", [2.1, 3.0, 3.9, 4.5, 5.0])
def test_a_server_that_is_away_for_six_seconds_ends_nobody(begins: float) -> None:
    server = Server(away=(begins, begins + 6))
    assert simulated(leads_without_a_break(server, 30)) > 0


def test_one_that_leads_renews_it_by_one_call() -> None:
    server = Server()
    simulated(leads_without_a_break(server, 60))
    assert server.calls <= 2 + 31


def test_one_that_cannot_renew_it_ends_before_another_may_take_it() -> None:
    async def work() -> float:
        server = Server()
        election = candidate(server)
        running = asyncio.ensure_future(election.run())
        await election.leads.wait()
        server.away = (LoopClock().now(), 1e9)
        with pytest.raises(NotLeading):
            await running
        return LoopClock().now()

    assert simulated(work()) <= RENEW_WITHIN_S + 0.1


def test_one_whose_lease_another_has_taken_ends_at_its_next_look() -> None:
    async def work() -> None:
        server = Server()
        election = candidate(server)
        running = asyncio.ensure_future(election.run())
        await election.leads.wait()
        other = Leadership("b", "ns", "op")
        body = other.body(server.lease, "2026-01-01T00:00:00.000000Z")
        server._take(body)
        with pytest.raises(NotLeading, match="b"):
            await running

    simulated(work())


@pytest.mark.parametrize("killed", [1.0, 3.7, 6.01])
def test_a_killed_one_is_followed_within_fifteen_seconds(killed: float) -> None:
    async def work() -> float:
        server = Server()
        first, second = candidate(server), candidate(server, "b")
        running = asyncio.ensure_future(first.run())
        await first.leads.wait()
        following = asyncio.ensure_future(second.run())
        await asyncio.sleep(killed)
        running.cancel()
        began = LoopClock().now()
        await second.leads.wait()
        following.cancel()
        return LoopClock().now() - began

    assert simulated(work()) < 15
