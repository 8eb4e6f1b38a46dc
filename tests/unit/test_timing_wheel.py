"""The timing wheel against a sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.wheel import TimingWheel

steps = st.lists(
    st.one_of(
        st.tuples(st.just("schedule"), st.integers(0, 9), st.integers(0, 70)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("advance"), st.just(0), st.integers(0, 40)),
    ),
    max_size=60,
)


@given(steps, st.integers(2, 17))
def test_it_agrees_with_a_sorted_list(actions, slots):
    wheel: TimingWheel[int] = TimingWheel(slots)
    model: dict[int, int] = {}
    now = 0
    for action, key, ticks in actions:
        if action == "schedule":
            wheel.schedule(key, ticks)
            model[key] = now + max(1, ticks)
        elif action == "cancel":
            assert wheel.cancel(key) == (model.pop(key, None) is not None)
        else:
            now += ticks
            due = sorted((at, key) for key, at in model.items() if at <= now)
            expired = wheel.advance(ticks)
            assert sorted(expired) == sorted(key for _, key in due)
            assert [model[key] for key in expired] == [at for at, _ in due]
            for key in expired:
                del model[key]
        assert len(wheel) == len(model)
        assert all((key in wheel) == (key in model) for key in range(10))
    assert wheel.now == now


def test_a_wheel_of_one_slot_is_refused():
    with pytest.raises(ValueError, match="2 slots"):
        TimingWheel(1)
