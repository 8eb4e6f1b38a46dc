"""The hybrid logical clock beside wrong wall clocks (rule 10)."""

from __future__ import annotations

from imcore.hlc import CLAMP_MS, Hlc, median_offset_ms, to_ms

T = 1_700_000_000_000
TEN_MINUTES_MS = 600_000


class Steady:
    def __init__(self) -> None:
        self.ms = 5_000

    def __call__(self) -> int:
        return self.ms


def test_without_a_measurement_the_own_clock_counts() -> None:
    assert to_ms(Hlc().next(T)) == T


def test_it_rises_above_what_was_seen_though_the_clock_goes_back() -> None:
    hlc = Hlc()
    first = hlc.next(T)
    assert hlc.next(T - 60_000) == first + 1
    assert hlc.next(T, seen=first + 500) == first + 501


def test_a_clock_that_is_off_the_median_is_clamped() -> None:
    hlc = Hlc(steady_ms=Steady())
    hlc.measured(T + TEN_MINUTES_MS, -TEN_MINUTES_MS)
    assert hlc.skewed()
    assert to_ms(hlc.next(T + TEN_MINUTES_MS)) == T + CLAMP_MS


def test_a_jump_is_clamped_before_the_next_measurement() -> None:
    steady = Steady()
    hlc = Hlc(steady_ms=steady)
    hlc.measured(T, 20)
    steady.ms += 300
    assert to_ms(hlc.next(T + 300 + TEN_MINUTES_MS)) == T + 20 + 300 + CLAMP_MS
    assert to_ms(Hlc(steady_ms=steady).next(T)) == T


def test_a_clock_that_jumps_back_does_not_hold_the_order_back() -> None:
    steady = Steady()
    hlc = Hlc(steady_ms=steady)
    hlc.measured(T, 0)
    steady.ms += 2_000
    assert to_ms(hlc.next(T + 2_000 - TEN_MINUTES_MS)) == T + 2_000 - CLAMP_MS


def test_two_clocks_do_not_pull_each_other_apart() -> None:
    assert median_offset_ms([0, TEN_MINUTES_MS]) == 0
    assert median_offset_ms([0, 5, TEN_MINUTES_MS]) == 5
