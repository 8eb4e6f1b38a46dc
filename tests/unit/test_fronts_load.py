"""A core shows what all its fronts report of their load, and nothing else."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from services.split.fronts import UNLINKED_S, Fronts
from services.split.links import FrontLink, Here
from services.split.pipe import Pipe
from services.state.latency import AckLatency


def _fronts(*names: str) -> Fronts:
    fronts = Fronts("fra", pb.Stamp, lambda: 0, lambda: 0, lambda: None, SystemClock(), Limits())
    fronts.gateways += [
        FrontLink(front.Hello(gateway=name, port=7000 + n), Pipe()) for n, name in enumerate(names)
    ]
    return fronts


def _say(fronts: Fronts, number: int, load: front.Load) -> None:
    fronts._up(fronts.gateways[number], front.Up(load=load))


def test_acks_are_those_of_one_process_that_had_seen_all() -> None:
    fronts, whole = _fronts("one", "two"), AckLatency()
    for number, times in enumerate(([0.001] * 90, [0.2] * 10)):
        part = AckLatency()
        for took_s in times:
            part.add(5.0, took_s)
            whole.add(5.0, took_s)
        _say(fronts, number, front.Load(served_share=1.0, acks=part.buckets(5.0)))
    assert fronts.acks() == whole.seen(5.0)


def test_the_share_is_the_lowest_and_counts_add_up() -> None:
    fronts = _fronts("one", "two", "silent yet")
    _say(fronts, 0, front.Load(served_share=1.0, shed=2, requests=3, connects=1))
    _say(fronts, 0, front.Load(served_share=1.0, shed=1, requests=4, turned_away=5))
    _say(fronts, 1, front.Load(served_share=0.4, shed=7, requests=5, breaker_open=True))
    assert fronts.load() == {
        "served_share": 0.4, "overloaded": 0, "shed": 10,
        "breaker_open": True, "breaker_opened": 0,
    }  # fmt: skip
    assert fronts.queued() == {"connects": 0, "requests": 9}
    assert fronts.limited.turned_away == 5


def test_without_a_front_there_are_no_acks() -> None:
    assert _fronts().acks() == (0, None, None)


def test_what_has_changed_adds_up_to_who_is_here_whatever_fronts_and_links_do() -> None:
    """So a mover need not look at all of them, and nobody walks through them to count."""
    rng, fronts = random.Random(1), _fronts("one", "two", "three")
    seen: dict[str, Here] = {}
    most = 0
    for step in range(3_000):
        link = rng.choice(fronts.gateways)
        if rng.random() < 0.01:
            fronts._remove(link)
            if rng.random() < 0.5:  # what is still read of it
                link.change(Here("late", "a", "phone", "asia", link.name, True, step), False)
            fronts.gateways.append(FrontLink(front.Hello(gateway=link.name), Pipe()))
            continue
        uid, device = rng.choice("abcd"), rng.choice(("phone", "desk"))
        # A session that goes on elsewhere is there before it is gone here.
        session = f"{uid}-{device}-{rng.randrange(3)}"
        change = front.SessionChange(shard=rng.choice(("europe", "asia")))
        change.connected, change.over = rng.random() < 0.7, rng.random() < 0.3
        change.caller.id, change.caller.uid, change.caller.device = session, uid, device
        change.caller.connection_epoch = step
        fronts._changed(link, change)
        if rng.random() < 0.3:
            for key, row in fronts.changed().items():
                seen.pop(key, None)
                if row is not None:
                    seen[key] = row
            rows = [row for row in fronts.sessions() if row.connected]
            assert seen.keys() == {row.session for row in rows}
            assert all(row in rows for row in seen.values())
            assert fronts.connected_count() >= len(rows)  # links have just ended
            assert fronts.shards() == Counter(row.shard for row in rows)
            assert fronts.changed() == {}
            most = max(most, len(rows))
    assert most > 5


def test_sessions_of_a_front_that_links_anew_are_counted_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seed 967175120082: its link went over to a route instance just when the IDC's last clients
    were there, and the IDC was called drained."""
    fronts, now = _fronts("one", "two"), [100.0]
    monkeypatch.setattr(fronts._clock, "now", lambda: now[0])
    one, two = fronts.gateways
    for n, link in enumerate((one, two, two)):
        link.change(Here(f"s{n}", f"u{n}", "phone", "asia", link.name, True, n), False)
    fronts._remove(two)
    now[0] += UNLINKED_S
    assert fronts.connected_count() == 3
    fronts.gateways.append(FrontLink(front.Hello(gateway="two", port=7001), Pipe()))
    assert fronts.connected_count() == 3, "it has not said yet who is there"
    now[0] += 0.1
    assert fronts.connected_count() == 1
    fronts._remove(one)
    now[0] += UNLINKED_S + 0.1
    assert fronts.connected_count() == 0, "it is gone"
