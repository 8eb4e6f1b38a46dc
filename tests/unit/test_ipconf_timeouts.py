"""Time-outs that ipconf computes from what clients say that theirs took."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from services.ipconf.timeouts import (
    HALF_S,
    LEAST,
    OF_ONE_ADDRESS,
    REPORTED_MS_MAX,
    UIDS_MAX,
    WINDOW_S,
    Bounds,
    Sketch,
    Timeouts,
)

FIXED = {"connect_timeout_ms": 4_000, "heartbeat_timeout_ms": 5_000}
ENOUGH = 2 * int(LEAST)
START = 1e6  # a clock that has run for days
SEEDS = range(5)


def timeouts(most_ms: int = 10_000) -> Timeouts:
    bounds = Bounds(**FIXED, timeout_max_ms=most_ms)
    return Timeouts({"wifi": bounds, "cellular": bounds})


def lte(rng: random.Random) -> int:
    """A connect: three round trips of 60 ms and what the server does; a lost SYN costs a second."""
    return round(rng.gauss(220, 40)) + 1_000 * (rng.random() < 0.02)


def edge(rng: random.Random) -> int:
    """Three of 600 ms, with jitter; a lost packet costs a second or two."""
    return round(rng.gauss(2_000, 250)) + rng.randint(1_000, 2_000) * (rng.random() < 0.1)


def crowd(
    known: Timeouts,
    network: str,
    draw: Callable[[random.Random], int],
    seed: int = 1,
    now: float = START,
    over_s: float = 1_800.0,
    count: int = ENOUGH,
) -> None:
    """Users of their own addresses, one after the other."""
    rng = random.Random(seed)
    for number in range(count):
        at = now + over_s * number / count
        known.hear(network, f"{seed}-{number}", f"a{seed}-{number}", draw(rng), draw(rng) // 3, at)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_network_gets_a_longer_one_and_a_fast_one_a_shorter_to_connect(seed: int) -> None:
    known = timeouts()
    assert known.of("cellular", START) == FIXED
    crowd(known, "cellular", edge, seed)
    crowd(known, "wifi", lte, seed)
    slow, fast = known.of("cellular", START + 1_800), known.of("wifi", START + 1_800)
    assert 2 * 2_400 < slow["connect_timeout_ms"] < 10_000
    # By half and no further, however fast it is; that of heartbeats is never shorter.
    assert fast == {"connect_timeout_ms": 2_000, "heartbeat_timeout_ms": 5_000}


def test_no_report_takes_a_timeout_out_of_its_bounds() -> None:
    known = timeouts()
    crowd(known, "cellular", lambda _: REPORTED_MS_MAX)
    assert known.of("cellular", START + 1_800) == {
        "connect_timeout_ms": 10_000,
        "heartbeat_timeout_ms": 10_000,
    }
    # A ceiling below the fixed ones leaves these where they are.
    low = timeouts(most_ms=1)
    crowd(low, "cellular", lambda _: REPORTED_MS_MAX)
    assert low.of("cellular", START + 1_800) == FIXED
    fixed = timeouts(most_ms=0)
    crowd(fixed, "cellular", lambda _: REPORTED_MS_MAX)
    assert fixed.of("cellular", START + 1_800) == {}


def test_few_reports_change_nothing() -> None:
    known = timeouts()
    crowd(known, "cellular", edge, count=int(LEAST) - 1, over_s=0.0)
    assert known.of("cellular", START) == FIXED
    known.hear("cellular", "one-more", "", 2_000, None, START)
    assert known.of("cellular", START)["connect_timeout_ms"] > 4_000
    # Who said nothing of heartbeats is no witness of theirs.
    assert known.of("cellular", START)["heartbeat_timeout_ms"] == 5_000


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lie", [0, REPORTED_MS_MAX])
def test_a_liar_moves_nothing_however_often_and_under_how_many_names(seed: int, lie: int) -> None:
    honest, told = timeouts(), timeouts()
    rng, hours = random.Random(seed), 7
    for minute in range(hours * 60):
        at = START + 60.0 * minute
        told.hear("cellular", "liar", "his", lie, lie, at)
        told.hear("cellular", f"liar-{minute}", "his", lie, lie, at)
        if minute >= (hours - 1) * 60:
            for number in range(3):
                uid, ms = f"{minute}-{number}", edge(rng)
                for known in (honest, told):
                    known.hear("cellular", uid, uid, ms, ms, at)
    now = START + hours * 3_600
    before, after = honest.of("cellular", now), told.of("cellular", now)
    for name, fixed in FIXED.items():
        assert 10_000 > before[name] > fixed
        # What is asked for is a rank: he shifts it among honest ones' values, at most.
        assert abs(after[name] - before[name]) <= 0.25 * before[name]


def test_a_user_is_heard_once_an_hour_and_an_address_twice() -> None:
    known = timeouts()
    for second in range(1_000):
        known.hear("cellular", "ann", f"a{second}", 3_000, None, START + second)
        known.hear("cellular", f"u{second}", "office", 3_000, None, START + second)
    sketch = known._networks["cellular"].connects
    assert sketch.weight(START + 1_000) <= 1 + OF_ONE_ADDRESS
    known.hear("cellular", "ann", "a", 3_000, None, START + WINDOW_S)
    assert sketch.weight(START + WINDOW_S) > 1 + OF_ONE_ADDRESS / 2
    # Where addresses are not known, users count.
    for number in range(10):
        known.hear("wifi", f"u{number}", "", 3_000, None, START)
    assert known._networks["wifi"].connects.weight(START) == pytest.approx(10)


def test_what_is_kept_is_bounded_whoever_asks() -> None:
    known = timeouts()
    network = known._networks["cellular"]
    for hour in (0, 1, 2):
        now = START + hour * WINDOW_S
        for number in range(UIDS_MAX + 100):
            known.hear("cellular", f"{hour}-{number}", f"{hour}-{number}", 100, 100, now)
        assert len(network._uids) == len(network._of_address) == len(network._heard) == UIDS_MAX
        weight = UIDS_MAX * (2 - 0.5**hour)
        assert network.connects.weight(now) == pytest.approx(weight)


def test_what_was_long_ago_is_forgotten() -> None:
    known = timeouts()
    crowd(known, "cellular", edge, over_s=0.0, count=1_000)
    slow = known.of("cellular", START)
    assert slow["connect_timeout_ms"] > 4_000
    # The cells are built out: hour by hour others, who are fast.
    at = START
    for hour in range(1, 12):
        at = START + hour * HALF_S
        crowd(known, "cellular", lte, 50 + hour, at, over_s=0.0, count=100)
    assert known.of("cellular", at)["connect_timeout_ms"] == 2_000
    # And where nobody comes any more the fixed ones are back, also after years.
    assert known.of("cellular", at + 3 * HALF_S) == FIXED
    assert known.of("cellular", at + 1e9) == FIXED
    crowd(known, "cellular", edge, 99, at + 1e9, over_s=0.0)
    assert known.of("cellular", at + 1e9)["connect_timeout_ms"] > 4_000


@pytest.mark.parametrize("seed", SEEDS)
def test_a_quantile_is_near_the_true_one_and_not_below_it(seed: int) -> None:
    rng = random.Random(seed)
    values = [round(rng.lognormvariate(6, 1)) for _ in range(2_000)]
    sketch = Sketch()
    for value in values:
        sketch.add(value, START)
    for share in (0.5, 0.95, 0.99):
        true = sorted(values)[int(share * len(values)) - 1]
        assert true <= sketch.quantile(share) <= 1.1 * true + 1
    assert Sketch().quantile(0.95) == 0
