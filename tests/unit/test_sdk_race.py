"""When which of several gateways is dialled."""

from __future__ import annotations

from services.sdk.core.race import DELAY_MAX_S, DELAY_S, ELSEWHERE_S, Race, head_start_s, order


def starts(race: Race, until: float, fails: dict[float, int] | None = None) -> dict[int, float]:
    """When each is dialled, looked at every 10 ms; ``fails``: how many fail then."""
    found: dict[int, float] = {}
    left = dict(fails or {})
    for tick in range(round(until * 100) + 1):
        now = tick / 100
        for _ in range(left.pop(now, 0)):
            race.failed()
        while (index := race.due(now)) is not None:
            found[index] = now
    return found


def test_the_next_is_dialled_after_the_head_start_of_the_one_before():
    assert starts(Race([0.25, 0.5, 0.25]), 2.0) == {0: 0.0, 1: 0.25, 2: 0.75}


def test_when_all_that_were_dialled_have_failed_the_next_is_due_at_once():
    assert starts(Race([0.25] * 3), 0.2, {0.1: 1}) == {0: 0.0, 1: 0.1}
    # One of two is still waited for: the third has to wait for its time.
    assert starts(Race([0.25] * 3), 2.0, {0.3: 1}) == {0: 0.0, 1: 0.25, 2: 0.5}


def test_it_is_over_when_all_have_failed():
    race = Race([0.25, 0.25])
    assert race.due(0.0) == 0
    race.failed()
    assert not race.over() and race.wait_s(0.0) == 0.0
    assert race.due(0.0) == 1 and race.wait_s(0.0) is None
    race.failed()
    assert race.over()


def test_a_gateway_that_is_far_away_is_given_its_time():
    assert head_start_s(None, False) == head_start_s(0.01, False) == DELAY_S
    assert head_start_s(0.6, False) > 0.6
    assert head_start_s(60.0, False) == DELAY_MAX_S


def test_another_idc_is_dialled_later_than_another_gateway_at_home():
    assert head_start_s(None, True) == head_start_s(0.3, True) == ELSEWHERE_S > DELAY_S
    assert head_start_s(0.8, True) > 0.8


def test_a_gateway_beside_the_best_comes_before_other_idcs_and_those_that_failed_last():
    idcs = ["fra", "fra", "fra", "iad", "iad", "sin"]
    assert order(idcs, [False] * 6) == [0, 1, 3, 5, 2, 4]
    assert order(idcs, [True, False, False, False, False, False]) == [1, 3, 5, 2, 4, 0]
    assert order([], []) == []
