"""How a huge group is told follows from what it says and to how many, and comes back by itself."""

from __future__ import annotations

import itertools

from services.im.heat import CROWDED, HOLD_S, Bounds, Crowding, Heat, Level

BOUNDS = Bounds(merged=10_000, signals=1_000_000)
HUGE = 10_000


def say(heat: Heat, per_s: float, audience: int, begin: float, seconds: float) -> list[Level]:
    """The level behind each message."""
    count = round(per_s * seconds)
    return [heat.said(1, audience, begin + number / per_s) for number in range(count)]


def test_a_quiet_group_is_told_at_once_however_large() -> None:
    heat = Heat(BOUNDS, 0.0)
    assert set(say(heat, 1 / 3, HUGE, 0.0, 60.0)) == {Level.AT_ONCE}


def test_rate_times_audience_decides() -> None:
    for audience, per_s, level in (
        (HUGE, 50, Level.MERGED),
        (HUGE, 200, Level.SIGNALS),
        (600, 10, Level.AT_ONCE),
        (600, 50, Level.MERGED),
        (5, 1_000, Level.AT_ONCE),  # hardly anybody is there
    ):
        levels = say(Heat(BOUNDS, 0.0), per_s, audience, 0.0, 20.0)
        assert levels[-1] is level, (audience, per_s)
        assert levels == sorted(levels)


def test_a_burst_counts_at_once() -> None:
    assert Heat(BOUNDS, 0.0).said(50, HUGE, 0.0) is Level.MERGED
    assert Heat(BOUNDS, 0.0).said(500, HUGE, 0.0) is Level.SIGNALS


def test_it_recovers_by_itself_one_level_after_the_other() -> None:
    heat = Heat(BOUNDS, 0.0)
    say(heat, 200, HUGE, 0.0, 10.0)
    seen = [(0.1 * turn, heat.look(HUGE, 10.0 + 0.1 * turn)) for turn in range(400)]
    assert [level for _, level in seen] == sorted((level for _, level in seen), reverse=True)
    merged = next(at for at, level in seen if level is Level.MERGED)
    at_once = next(at for at, level in seen if level is Level.AT_ONCE)
    assert HOLD_S <= merged < at_once - HOLD_S + 0.2 and at_once < 30.0


def test_a_rate_that_plays_around_a_bound_changes_nothing() -> None:
    heat = Heat(BOUNDS, 0.0)
    levels, at = [], 0.0
    for turn in range(40):  # three seconds above the bound, three below it
        for _ in range(30):
            at += 0.1
            if turn % 2 == 0 or round(at * 10) % 2:
                levels.append(heat.said(1, 1_400, at))
    changes = sum(before is not after for before, after in itertools.pairwise(levels))
    assert changes <= 1


def test_a_pause_shorter_than_the_hold_keeps_the_level() -> None:
    heat = Heat(BOUNDS, 0.0)
    say(heat, 50, HUGE, 0.0, 5.0)
    assert heat.look(HUGE, 5.0 + HOLD_S / 2) is Level.MERGED
    assert heat.said(1, HUGE, 5.0 + HOLD_S - 0.5) is Level.MERGED


def test_when_the_audience_has_gone_there_is_nothing_to_spare() -> None:
    heat = Heat(BOUNDS, 0.0)
    say(heat, 50, HUGE, 0.0, 5.0)
    levels = say(heat, 50, 10, 5.0, 30.0)
    assert levels[-1] is Level.AT_ONCE


def test_groups_that_are_too_much_together_are_told_less_often_and_recover() -> None:
    """Twenty groups, each of them cool enough to be told at once; together twice what one process
    delivers. In turns of a window, as ``Diffusion`` has them."""
    heats, crowding = [Heat(BOUNDS, 0.0) for _ in range(20)], Crowding()
    capacity, turn_s, waiting, most = 95_000, 0.2, 0.0, 0.0
    due, said = [0.0] * len(heats), [0] * len(heats)
    for turn in range(600):
        now = turn * turn_s
        talks = now < 60
        crowding.look(int(waiting))
        counted = 10_000 * crowding.factor
        for number, heat in enumerate(heats):
            messages = (turn % 6 == number % 6) if talks else 0  # 0.83/s to 10,000: below the bound
            said[number] += messages
            level = heat.said(messages, counted, now) if messages else heat.look(counted, now)
            if said[number] and (level is Level.AT_ONCE or due[number] <= now):
                waiting += 10_000 * (said[number] if level is Level.AT_ONCE else 1)
                said[number] = 0
                due[number] = now + max(turn_s, counted / BOUNDS.merged)
        waiting = max(0.0, waiting - capacity * turn_s)
        most = max(most, waiting)
    assert CROWDED < most < 4 * capacity  # in seconds: 4
    assert waiting == 0
    assert crowding.factor < 1.1
    assert {heat.look(10_000, 120.0) for heat in heats} == {Level.AT_ONCE}
