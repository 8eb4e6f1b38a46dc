"""The operator's lease: one may write, the next only when that one no longer does."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from imctl.reconcile.lease import (
    EVERY_S,
    LEASE_S,
    RENEW_WITHIN_S,
    Leadership,
    holder_of,
    is_fresh,
    works_in,
)

WALL = "2026-01-01T00:00:00.000000Z"


class Store:
    """The Lease at an API server: a write with another version than its own is refused."""

    def __init__(self) -> None:
        self.lease: Any = None
        self.version = 0

    def write(self, body: Any) -> Any:
        expected = body["metadata"].get("resourceVersion")
        if expected != (self.lease["metadata"]["resourceVersion"] if self.lease else None):
            return None
        self.version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        self.lease = {**body, "metadata": metadata}
        return self.lease


def turn(one: Leadership, store: Store, now: float) -> bool:
    """A look, and perhaps a write."""
    lease = store.lease
    one.seen(lease, now)
    if not one.may_take(now):
        return False
    written = store.write(one.body(lease, WALL))
    if written is not None:
        one.written(written, now)
    return written is not None


def pair() -> tuple[Store, Leadership, Leadership]:
    return Store(), Leadership("a", "ns", "op"), Leadership("b", "ns", "op")


def test_the_first_has_it_and_the_second_waits() -> None:
    store, a, b = pair()
    assert turn(a, store, 0)
    assert not turn(b, store, 1)
    assert a.left(1) > 0 >= b.left(1)
    assert b.holder == "a"


def test_a_renewed_lease_is_never_taken() -> None:
    store, a, b = pair()
    for step in range(50):
        assert turn(a, store, step * EVERY_S)
        assert not turn(b, store, step * EVERY_S + 1)
    assert store.lease["spec"]["leaseTransitions"] == 1


def test_a_silent_holder_is_followed_within_fifteen_seconds() -> None:
    store, a, b = pair()
    turn(a, store, 0)
    now = 1.0
    while not turn(b, store, now):
        now += EVERY_S
    assert LEASE_S <= now < 15
    assert a.left(now) <= 0
    assert store.lease["spec"]["leaseTransitions"] == 2


def test_one_that_was_given_back_is_taken_at_once() -> None:
    store, a, b = pair()
    turn(a, store, 0)
    body = a.body(store.lease, WALL)
    body["spec"]["holderIdentity"] = ""
    store.write(body)
    assert turn(b, store, 0.5)


def test_of_two_who_try_at_once_one_has_it() -> None:
    store, a, b = pair()
    for one in (a, b):
        one.seen(None, 0)
    bodies = [one.body(None, WALL) for one in (a, b)]
    assert store.write(bodies[0]) is not None
    assert store.write(bodies[1]) is None


def test_time_is_counted_from_when_a_renewal_was_sent() -> None:
    store, a, _ = pair()
    turn(a, store, 5)
    assert a.left(5 + RENEW_WITHIN_S) == 0


@given(
    steps=st.lists(
        st.tuples(st.sampled_from("ab"), st.floats(0.1, 12), st.floats(0, 3), st.booleans()),
        max_size=60,
    )
)
def test_never_may_two_write(steps: list[tuple[str, float, float, bool]]) -> None:
    """Pauses of any length, writes that arrive late or whose answer is lost, steady clocks that
    have nothing in common."""
    store = Store()
    start = {"a": 1000.0, "b": 5.0}
    each = {name: Leadership(name, "ns", "op") for name in start}
    now = 0.0
    for name, wait, delay, lost in steps:
        now += wait
        one, sent = each[name], now + start[name]
        one.seen(store.lease, sent)
        if one.may_take(sent):
            body = one.body(store.lease, WALL)
            now += delay
            written = store.write(body)
            if written is not None and not lost:
                one.written(written, sent)
        assert sum(each[who].left(now + start[who]) > 0 for who in each) <= 1


def test_whoever_holds_none_sees_where_its_operators_work_and_how_old_it_is() -> None:
    lease = Leadership("a", "ns", "op", ("im-fra", "im-dub")).body(None, WALL)
    assert [works_in(lease, name) for name in ("im-fra", "im-lon")] == [True, False]
    everywhere = Leadership("a", "ns", "op").body(None, WALL)
    assert works_in(everywhere, "im-lon") and holder_of(everywhere) == "a"
    del everywhere["metadata"]["annotations"]  # of an operator that does not say it
    assert works_in(everywhere, "im-lon")
    renewed_ms = int(datetime.fromisoformat(WALL).timestamp() * 1000)
    ages = [is_fresh(lease, renewed_ms + seconds * 1000) for seconds in (0, LEASE_S - 1, LEASE_S)]
    assert ages == [True, True, False]
    assert not is_fresh({"spec": {"renewTime": None}}, renewed_ms)
