"""A core shows what all its fronts report of their load, and nothing else."""

from __future__ import annotations

from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from services.split.fronts import FrontLink, Fronts
from services.state.latency import AckLatency


def _fronts(*names: str) -> Fronts:
    fronts = Fronts("fra", pb.Stamp, lambda: 0, lambda: 0, lambda: None, SystemClock(), Limits())
    fronts.gateways += [
        FrontLink(front.Hello(gateway=name, port=7000 + n)) for n, name in enumerate(names)
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
