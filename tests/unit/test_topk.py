"""Space-Saving: its bounds hold on any stream, its memory is bounded."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.metrics.hot import CONVERSATION, COUNTERS, GROUP, KEY, WINDOW_S, Hot
from services.metrics.topk import SpaceSaving

GROUP_ID = "g:" + "0" * 32


@given(st.lists(st.integers(0, 12), max_size=300), st.integers(1, 8))
def test_an_estimate_is_never_too_low_and_at_most_its_error_too_high(stream, counters):
    sketch: SpaceSaving[int] = SpaceSaving(counters)
    for key in stream:
        sketch.add(key)
    exact = Counter(stream)
    found = sketch.top(counters)
    assert len(sketch) <= counters
    assert sum(row.count for row in found) == len(stream) == sketch.seen
    for row in found:
        assert row.count - row.error <= exact[row.key] <= row.count
        assert row.error <= len(stream) / counters
    kept = {row.key for row in found}
    for key, count in exact.items():
        assert key in kept or count <= len(stream) / counters


@given(st.lists(st.integers(0, 5), max_size=200))
def test_with_a_counter_for_each_it_counts_exactly(stream):
    sketch: SpaceSaving[int] = SpaceSaving(6)
    for key in stream:
        sketch.add(key)
    assert {row.key: row.count for row in sketch.top(6)} == dict(Counter(stream))
    assert all(row.error == 0 for row in sketch.top(6))


def test_the_hot_are_found_among_very_many_in_bounded_memory():
    rng = random.Random(7)
    sketch: SpaceSaving[int] = SpaceSaving(50)
    for _ in range(20_000):
        sketch.add(rng.choice((-1, -2, rng.randrange(1_000_000))))
    assert {row.key for row in sketch.top(2)} == {-1, -2}
    assert len(sketch) == 50
    assert len(sketch._errors) <= 50
    assert sum(map(len, sketch._buckets.values())) == 50


def test_a_window_is_shown_whole_and_goes_when_it_is_over():
    hot = Hot(random.Random(5), messages_one_in=1, keys_one_in=1)
    hot.turn(100.0)
    hot.messages("d:ann:bob", 3)
    hot.messages(GROUP_ID, 5)
    for _ in range(160):
        hot.read(b"key")
    assert hot.top(CONVERSATION, 10) == []
    hot.turn(100.0 + WINDOW_S)
    assert [(row.key, row.count) for row in hot.top(CONVERSATION, 10)] == [
        (GROUP_ID, 5), ("d:ann:bob", 3),
    ]  # fmt: skip
    assert [(row.key, row.count) for row in hot.top(GROUP, 1)] == [(GROUP_ID, 5)]
    assert [(row.key, row.count) for row in hot.top(KEY, 1)] == [(b"key", 160)]
    hot.turn(100.0 + 2 * WINDOW_S)
    assert hot.top(CONVERSATION, 10) == []
    assert COUNTERS <= 1024


def test_what_is_read_in_pairs_is_counted_in_equal_parts():
    hot = Hot(random.Random(5))
    hot.turn(100.0)
    for _ in range(16_000):
        hot.read(b"heads")
        hot.read(b"group")
        hot.messages("d:ann:bob", 2)
    hot.turn(100.0 + WINDOW_S)
    counts = {row.key: row.count for row in hot.top(KEY, 10) + hot.top(CONVERSATION, 10)}
    assert set(counts) == {b"heads", b"group", "d:ann:bob"}
    assert 14_000 < counts[b"heads"] < 18_000 and 14_000 < counts[b"group"] < 18_000
    assert 30_000 < counts["d:ann:bob"] < 34_000
