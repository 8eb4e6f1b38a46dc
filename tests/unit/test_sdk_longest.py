"""How the longest silence is found that a path survives, with a NAT that is simulated."""

from __future__ import annotations

import random
import statistics

import pytest

from services.sdk.core.longest import NETWORKS_MAX, Longest, Networks


def drive(longest: Longest, nat_s: float, heartbeats: int, rng: random.Random) -> int:
    """So many heartbeats, each after an interval with the usual jitter; returns how many found the
    connection dead."""
    lost = 0
    for _ in range(heartbeats):
        silence_s = longest.interval_s * rng.uniform(0.8, 1.0)
        if silence_s > nat_s:
            longest.lost(silence_s)
            lost += 1
        else:
            longest.survived(silence_s)
    return lost


@pytest.mark.parametrize("nat_s", [20.0, 33.0, 65.0, 119.0, 200.0])
def test_it_comes_near_to_what_the_path_survives_at_the_cost_of_few_connections(nat_s):
    longest, rng = Longest(5.0, 240.0), random.Random(1)
    assert drive(longest, nat_s, 40, rng) <= 8
    settled = [longest.interval_s for _ in range(200) if drive(longest, nat_s, 1, rng) == 0]
    assert len(settled) >= 180  # what broke is tried again now and then
    assert 0.75 * nat_s <= statistics.median(settled) <= 1.2 * nat_s  # the jitter is below it


def test_the_service_allows_so_much():
    longest = Longest(5.0, 60.0)
    assert drive(longest, 1e9, 50, random.Random(1)) == 0
    assert longest.interval_s == 60.0
    longest.allow(20.0)
    assert longest.interval_s == 20.0
    drive(longest, 1e9, 50, random.Random(1))
    assert longest.interval_s == 20.0
    assert Longest(5.0, 0.0).interval_s == 5.0  # and a service that allows nothing
    unasked = Longest(5.0, 0.0)
    drive(unasked, 1e9, 50, random.Random(1))
    assert unasked.interval_s == 5.0


def test_after_a_loss_it_steps_back_to_what_went():
    longest = Longest(10.0, 240.0)
    for _ in range(2):
        longest.survived(10.0)
    assert longest.interval_s == 15.0
    longest.lost(15.0)
    assert longest.interval_s == 10.0
    for _ in range(2):
        longest.survived(10.0)
    assert 10.0 < longest.interval_s < 15.0  # between what goes and what does not


def test_one_loss_of_what_went_before_is_an_accident_and_two_are_another_path():
    longest = Longest(10.0, 240.0)
    drive(longest, 60.0, 60, random.Random(1))
    went = longest.interval_s = longest._goes_s
    longest.lost(went)
    longest.survived(went)
    longest.lost(went)
    assert longest.interval_s >= went
    longest.lost(longest.interval_s)
    assert longest.interval_s < 0.7 * went


def test_silences_that_traffic_broke_tell_nothing():
    longest = Longest(10.0, 240.0)
    for _ in range(50):
        longest.survived(3.0)
        longest.lost(3.0)
    assert longest.interval_s == 10.0


def test_an_accident_does_not_hold_for_ever():
    longest, rng = Longest(10.0, 240.0), random.Random(1)
    longest.survived(10.0)
    longest.survived(10.0)
    longest.lost(longest.interval_s)  # the gateway died just then
    drive(longest, 1e9, 120, rng)
    assert longest.interval_s == 240.0


def test_each_network_is_remembered_and_so_many_are():
    networks = Networks()
    home = networks.of(("wifi", "home"), 5.0, 240.0)
    drive(home, 1e9, 10, random.Random(1))
    assert networks.of(("cellular", ""), 5.0, 240.0).interval_s == 5.0
    assert networks.of(("wifi", "home"), 5.0, 240.0) is home
    for number in range(NETWORKS_MAX):
        networks.of(("wifi", str(number)), 5.0, 240.0)
    assert networks.of(("wifi", "home"), 5.0, 240.0) is not home
