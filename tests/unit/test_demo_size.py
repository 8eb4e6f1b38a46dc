"""How large the demo's load is where nobody says it."""

from __future__ import annotations

import pytest

from imctl.demo import SMALL, USUAL, Size, offered, size_of, small_note


@pytest.mark.parametrize("engines", [(), ("kafka",), ("etcd", "s3")])
def test_it_is_the_usual_one_where_the_kv_is_embedded(engines: tuple[str, ...]) -> None:
    assert size_of(engines, None, None) == USUAL
    assert small_note(engines, None, None) == ""


def test_it_is_smaller_on_all_real_engines_and_says_so() -> None:
    engines = ("kafka", "tikv", "etcd")
    assert size_of(engines, None, None) == SMALL
    note = small_note(engines, None, None)
    assert f"{SMALL.clients} clients and {SMALL.rate:g} messages/s" in note and "--rate" in note


def test_what_is_asked_for_counts() -> None:
    engines = ("kafka", "tikv", "etcd")
    assert size_of(engines, 40, None) == Size(40, SMALL.rate)
    assert size_of(engines, None, 100.0) == Size(SMALL.clients, 100.0)
    assert size_of(engines, 300, 300.0) == Size(300, 300.0)
    assert small_note(engines, 300, 300.0) == ""
    assert "40 clients" in small_note(engines, 40, None)


def test_random_arrivals_reach_a_low_rate_too() -> None:
    assert offered(300.0, 1.05, 15.0) == pytest.approx(315)
    assert offered(20.0, 1.25, 15.0) == 25
    # 28 s of 10 a second are 280 arrivals, give or take 17.
    assert offered(10.0, 1.05, 15.0) == pytest.approx(10 + 3 * 17 / 28, abs=0.05)
    assert offered(10.0, 1.05, 0.5) < 20
