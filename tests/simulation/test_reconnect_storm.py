"""All clients of a lost IDC come back at once: the cores that decide (the SDK's ``Reconnect``, the
``Doors`` of ipconfs and gateways) with a model of what a server can do, in virtual time.

A server works off what reaches it one after the other, a handshake at a time, and what comes while
its queue is full finds nobody. What is modelled is what makes storms collapse: work for clients
that have given up by then, and those who come again together.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

import pytest

from imcore.doors import Doors
from imcore.listener import BACKLOG
from services.sdk.core.liveness import Due, Liveness
from services.sdk.core.parameters import Parameters
from services.sdk.core.reconnect import Lost, Reconnect, Where

SLOT_S = 0.01
LOOKUP_S = 0.0006  # a handshake and an answer of ipconf, whatever it says
CONNECT_S = 0.001  # a handshake and a Connect at a gateway
LOOKUPS_PER_S = 1_000
CONNECTS_PER_S = 500
ASKED = 3  # ipconfs of one lookup, and gateways of one answer
NO_ANSWER_S = 2.0
NO_GATEWAY_S = 3 * 1.5
OPEN = Doors(1e12, 1e12, 0.0)  # lets everybody in


class Server:
    def __init__(self, cost_s: float, doors: Doors, queue: float) -> None:
        self.cost_s = cost_s
        self.doors = doors
        self.queue_s = queue * cost_s
        self.free_at = 0.0
        self.worked_s = 0.0
        self.wasted_s = 0.0

    def ask(self, now: float, patience_s: float) -> tuple[float, int] | None:
        """When the answer is there, and for how long it turns the client away; None: nobody is
        found, or the client has given up by then."""
        begins = max(now, self.free_at)
        if begins - now > self.queue_s:
            return None
        self.free_at = begins + self.cost_s
        self.worked_s += self.cost_s
        if self.free_at - now > patience_s:
            self.wasted_s += self.cost_s
            return None
        return self.free_at, self.doors.enter(begins)


class Found(NamedTuple):
    connected: Counter[int]  # by second
    lookups: int
    wasted: float  # share of the work
    ended_s: float


class Storm:
    """``servers``: makes ipconfs and gateways."""

    def __init__(
        self,
        clients: int,
        ipconfs: int,
        gateways: int,
        seed: int,
        doors: Callable[[float], Doors] = lambda per_s: Doors(per_s, per_s, 0.0),
        queue: float = BACKLOG,
    ) -> None:
        self.rng = random.Random(seed)
        self.ipconfs = [Server(LOOKUP_S, doors(LOOKUPS_PER_S), queue) for _ in range(ipconfs)]
        self.gateways = [Server(CONNECT_S, doors(CONNECTS_PER_S), queue) for _ in range(gateways)]
        self.cores = [Reconnect(self.rng) for _ in range(clients)]
        self.due: defaultdict[int, list[int]] = defaultdict(list)
        self.lookups = 0

    def run(self, most_s: float) -> Found:
        for client in range(len(self.cores)):
            self.lost(client, 0.0, Lost("lost", lived_ms=600_000))
        connected: Counter[int] = Counter()
        slot = 0
        while self.due and slot * SLOT_S < most_s:
            for client in self.due.pop(slot, ()):
                ended = self.lookup(client, slot * SLOT_S)
                if ended is not None:
                    connected[int(ended)] += 1
            slot += 1
        servers = [*self.ipconfs, *self.gateways]
        worked = sum(server.worked_s for server in servers)
        wasted = sum(server.wasted_s for server in servers)
        return Found(connected, self.lookups, wasted / worked, slot * SLOT_S)

    def lost(self, client: int, now: float, lost: Lost) -> None:
        core = self.cores[client]
        plan = core.lost(lost)
        while plan.where is Where.SAME:  # its gateway is gone, which is found at once
            now += plan.delay_ms / 1000
            plan = core.lost(Lost("refused"))
        self.due[int((now + plan.delay_ms / 1000) / SLOT_S) + 1].append(client)

    def any_of(self, servers: list[Server]) -> Server:
        return servers[int(self.rng.random() * len(servers))]

    def lookup(self, client: int, now: float) -> float | None:
        """When it is connected; else it is told, or finds out, when to come again."""
        self.lookups += 1
        for _ in range(ASKED):
            answer = self.any_of(self.ipconfs).ask(now, NO_ANSWER_S)
            if answer is not None:
                break
        else:
            self.lost(client, now + NO_ANSWER_S, Lost("no_answer"))
            return None
        at, wait_ms = answer
        if wait_ms:
            self.lost(client, at, Lost("no_answer", retry_after_ms=wait_ms))
            return None
        for _ in range(ASKED):
            answer = self.any_of(self.gateways).ask(at, NO_GATEWAY_S / ASKED)
            if answer is None:
                continue
            at, wait_ms = answer
            if not wait_ms:
                return at
            self.lost(client, at, Lost("overloaded", retry_after_ms=wait_ms))
            return None
        self.lost(client, at + NO_GATEWAY_S, Lost("timeout"))
        return None


def judge(found: Found, clients: int, per_s: float) -> None:
    ideal_s = clients / per_s
    assert found.connected.total() == clients
    assert found.ended_s < 1.5 * ideal_s + 10
    assert max(found.connected.values()) <= 2.1 * per_s  # a burst at first, then the rate
    assert found.wasted == 0.0
    # Once begun, it goes on at no less than half of the rate until most are in.
    done = 0
    for second in range(1, int(found.ended_s)):
        if done > 0.75 * clients:
            break
        assert found.connected[second] > 0.5 * per_s, (second, found.connected)
        done += found.connected[second]


def show(found: Found, clients: int) -> str:
    return (
        f"{clients:,} clients in {found.ended_s:.0f} s, "
        f"{found.lookups / clients:.1f} lookups each, "
        f"at most {max(found.connected.values()):,} connected in a second"
    )


def test_a_storm_is_let_in_at_the_rate_and_wastes_nothing(figures):
    clients, ipconfs, gateways = 30_000, 3, 4
    found = Storm(clients, ipconfs, gateways, 1).run(200)
    figures("reconnect storm", show(found, clients))
    judge(found, clients, min(ipconfs * LOOKUPS_PER_S, gateways * CONNECTS_PER_S))


def test_without_bounds_the_same_storm_does_work_for_clients_that_are_gone(figures):
    found = Storm(30_000, 3, 4, 1, doors=lambda _: OPEN, queue=float("inf")).run(60)
    figures("the same without bounds: wasted work", f"{found.wasted:.0%}")
    assert found.wasted > 0.3


@pytest.mark.nightly
def test_a_storm_of_a_million_clients(figures):
    clients, ipconfs, gateways = 1_000_000, 30, 60
    found = Storm(clients, ipconfs, gateways, 1).run(600)
    figures("reconnect storm", show(found, clients))
    judge(found, clients, min(ipconfs * LOOKUPS_PER_S, gateways * CONNECTS_PER_S))


# -------------------------------------------------------------------------- the heartbeat tide


def test_heartbeats_of_clients_that_connected_together_spread_over_the_interval(figures):
    """Those who came at the same moment must not go on speaking at the same moments."""
    clients, beats, tick_s = 4_000, 12, 0.1
    parameters = Parameters()
    interval_s = parameters.heartbeat_ms / 1000
    heard: Counter[int] = Counter()
    for number in range(clients):
        live = Liveness(parameters, random.Random(number), 0.0)
        for step in range(round(beats * interval_s / tick_s)):
            if live.due(step * tick_s) is Due.HEARTBEAT:
                live.sent(step * tick_s)
                live.answered()
                heard[step] += 1
    mean = clients * tick_s / (0.9 * interval_s)
    for beat in range(0, beats, 3):
        first = round(beat * interval_s / tick_s)
        row = [heard[step] for step in range(first, first + round(interval_s / tick_s), 2)]
        figures(f"heartbeats in 0.1 s from {beat * interval_s:.0f} s on", bars(row))
    settled = [heard[step] for step in range(round(3 * interval_s / tick_s), step)]
    assert max(settled) < 1.5 * mean and min(settled) > 0.5 * mean


def bars(counts: list[int]) -> str:
    return "".join("▁▂▃▄▅▆▇█"[min(7, count * 8 // (max(counts) + 1))] for count in counts)
