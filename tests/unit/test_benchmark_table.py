"""Tables of the benchmark `real`: what is compared, and what is said when it cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import real, table


def test_best_of_a_rate_is_the_highest_and_of_everything_else_the_lowest() -> None:
    runs = [{"acked/s": 900.0, "ack p99, ms": 7.0}, {"acked/s": 1000.0, "ack p99, ms": 9.0}]
    assert table.best("acked/s", runs) == 1000.0
    assert table.best("ack p99, ms", runs) == 7.0
    assert table.best("acked/s", [{}, {"acked/s": 5.0}]) == 5.0
    assert table.best("acked/s", [{}]) is None


@pytest.mark.parametrize(
    ("below", "above", "shown"),
    [(4.0, 6.0, "1.50"), (None, 6.0, "-"), (4.0, None, "-"), (0.0, 6.0, "-"), (-1.0, 6.0, "-")],
)
def test_ratio_is_given_only_where_it_means_something(
    below: float | None, above: float | None, shown: str
) -> None:
    assert table.ratio(below, above) == shown


def test_lines_show_all_runs_in_order_and_the_ratio_of_the_best() -> None:
    columns = {
        "embedded": [{"acked/s": 1000.0, "p99, ms": 8.0}, {"acked/s": 800.0, "p99, ms": 4.0}],
        "real": [{"acked/s": 500.0, "p99, ms": 12.0}, {"p99, ms": 6.0}],
    }
    head, *rows = table.lines(columns)
    assert head.split() == ["embedded", "real", "ratio"]
    assert [row.split() for row in rows] == [
        ["acked/s", "1,000", "800", "500", "-", "0.50"],
        ["p99,", "ms", "8.0", "4.0", "12.0", "6.0", "1.50"],
    ]
    assert len({len(row) for row in (head, *rows)}) == 1


def test_rate_that_was_not_sustained_shows_what_was_offered_and_acked() -> None:
    found: dict[str, Any] = {
        "offered": 1000.0, "achieved": 640.0, "messages": 100, "unacked": 3, "unreceived": 100,
        "ack": {"p50_ms": 1.0, "p99_ms": 2.0}, "receive": {"p50_ms": 0.0, "p99_ms": 0.0},
    }  # fmt: skip
    assert real.fixed("1000/s", found) == {
        "1000/s: offered/s": 1000.0,
        "1000/s: acked/s": 640.0,
        "1000/s: ack p50, ms": 1.0,
        "1000/s: ack p99, ms": 2.0,
    }
