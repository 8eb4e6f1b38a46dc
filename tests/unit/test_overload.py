"""The cores that turn away what is too much: buckets, doors, breaker, shedding, group load."""

from __future__ import annotations

from collections import Counter

import pytest

from imcore.breaker import Breaker
from imcore.bucket import Bucket, Buckets
from imcore.doors import WAIT_MAX_S, Doors
from imcore.region.model import Limits
from services.im.behind import AWAY_S, Behind
from services.im.load import ConversationLoad
from services.ports import NO_BACKLOG
from services.state.shedding import LEVEL_MIN, TURN_S, WINDOW_S, Shedder

# ---------------------------------------------------------------------------------- buckets


def test_a_bucket_lets_its_rate_through_and_says_when_there_is_more():
    bucket = Bucket(10, 5, 0.0)
    assert [bucket.take(0.0) for _ in range(5)] == [0.0] * 5
    wait_s = bucket.take(0.0)
    assert wait_s == pytest.approx(0.1)
    assert bucket.take(wait_s) == 0.0
    taken = sum(not bucket.take(1.0 + step / 100) for step in range(1_000))  # ten seconds
    assert 100 <= taken <= 105


def test_a_cost_above_the_burst_passes_and_is_paid_for_afterwards():
    bucket = Bucket(10, 5, 0.0)
    assert bucket.take(0.0, 50) == 0.0
    assert bucket.take(4.0) > 0 and bucket.take(4.7) == 0.0


def test_one_key_takes_nothing_from_another_and_the_oldest_is_forgotten_first():
    buckets = Buckets(1, 1, kept=2)
    assert buckets.take("a", 0.0) == 0.0 and buckets.take("a", 0.0) > 0
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.take("a", 0.0) > 0
    assert buckets.take("c", 0.0) == 0.0  # in place of b
    assert len(buckets) == 2 and buckets.take("a", 0.0) > 0


# ------------------------------------------------------------------------------------ doors


def test_those_who_are_turned_away_are_told_different_times_and_find_room_then():
    doors = Doors(100, 100, 0.0)
    told = [doors.enter(0.0) for _ in range(1_100)]
    assert told[:100] == [0] * 100
    waits = told[100:]
    assert len(set(waits)) == len(waits) and waits == sorted(waits)
    assert 9_500 < waits[-1] < 10_500  # a thousand, at a hundred a second
    assert [doors.enter(wait_ms / 1000) for wait_ms in waits] == [0] * 1_000


def test_appointments_that_nobody_keeps_make_nobody_wait():
    doors = Doors(100, 100, 0.0)
    for _ in range(5_000):
        doors.enter(0.0)
    assert doors.enter(2.0) == 0  # the first who comes, appointed or not
    for _ in range(100):
        doors.enter(2.0)
    assert doors.enter(2.0) < 100  # and nothing is left of the crowd


def test_nobody_is_told_to_wait_for_longer_than_the_most():
    doors = Doors(10, 10, 0.0)
    assert max(doors.enter(0.0) for _ in range(30_000)) <= WAIT_MAX_S * 1000


# ---------------------------------------------------------------------------------- breaker


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_try():
    breaker = Breaker(3, 1.0, 4.0)
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(3):
        assert breaker.wait_s(0.0) == 0.0
        breaker.failed(0.0)
    assert breaker.is_open and breaker.wait_s(0.4) == pytest.approx(0.6)
    assert breaker.wait_s(1.0) == 0.0 and breaker.wait_s(1.0) > 0  # one of two
    breaker.failed(1.5)
    assert breaker.wait_s(3.0) == pytest.approx(0.5)  # two seconds now
    assert breaker.wait_s(3.6) == 0.0
    breaker.succeeded()
    assert not breaker.is_open and breaker.wait_s(3.6) == 0.0 and breaker.opened == 1


def test_a_trial_of_which_nothing_is_heard_does_not_keep_it_open():
    breaker = Breaker(1, 1.0, 1.0)
    breaker.failed(0.0)
    assert breaker.wait_s(1.0) == 0.0
    assert breaker.wait_s(2.0) == 0.0


# --------------------------------------------------------------------------------- shedding

SERVE_S, REFUSE_S, LOOK_S, USERS = 250e-6, 60e-6, 0.02, 200


def served(shedder: Shedder, now: float, reads: bool = False) -> set[str]:
    uids = (f"u{number}" for number in range(2_000))
    return {uid for uid in uids if not shedder.retry_ms(uid, reads, now)}


def run(shedder: Shedder, start: float, seconds: float, wait: float, fold: float = 0.0) -> float:
    for step in range(round(seconds / 0.02)):
        shedder.waited(wait, lambda: NO_BACKLOG, start + step * 0.02)
    return start + seconds


def test_work_that_waits_too_long_sheds_sends_before_reads():
    shedder = Shedder(0.1, 2.0)
    now = run(shedder, 0.0, 1.0, 0.3)
    share = len(served(shedder, now)) / 2_000
    assert share == pytest.approx(shedder.level, abs=0.05) and 0.1 < share < 0.5
    assert len(served(shedder, now, reads=True)) / 2_000 == pytest.approx(2 * share, abs=0.1)
    assert shedder.retry_ms(next(iter({"u1", "u2", "u3"} - served(shedder, now)), "u1"), False, now)


class Folding:
    """1,000 records a second are offered, and ``kv_per_s`` folded."""

    def __init__(self, kv_per_s: float) -> None:
        self.shedder, self._behind = Shedder(0.1, 2.0), Behind()
        self._kv_per_s = kv_per_s
        self._now = self._end = self._folded = 0.0
        self.oldest_s: list[float] = []
        self.least, self.turned_away = 1.0, 0.0

    def run(self, seconds: float, kv_is_there: bool = True) -> None:
        for _ in range(round(seconds / LOOK_S)):
            self._now += LOOK_S
            self._end += 1_000 * LOOK_S * self.shedder.share
            self.turned_away += 1_000 * LOOK_S * (1 - self.shedder.share)
            if kv_is_there:
                self._folded = min(self._end, self._folded + self._kv_per_s * LOOK_S)
            self._backlog = self._behind.look(int(self._end), int(self._folded), self._now)
            self.shedder.waited(0.0, lambda: self._backlog, self._now)
            self.oldest_s.append(self._backlog.oldest_s)
            self.least = min(self.least, self.shedder.share)


def test_what_is_folded_as_it_comes_has_not_waited() -> None:
    folding = Folding(2_000)
    folding.run(30.0)
    assert max(folding.oldest_s) < 0.2 and folding.least == 1.0


@pytest.mark.parametrize("kv_per_s", [800, 400])
def test_a_kv_that_is_slower_than_the_log_is_not_left_further_and_further_behind(
    kv_per_s: float,
) -> None:
    """Without this receivers would wait for 24 s, or 72, after two minutes."""
    folding = Folding(kv_per_s)
    folding.run(120.0)
    assert max(folding.oldest_s) < 8.0
    assert folding.turned_away < 1.2 * 120 * (1_000 - kv_per_s)
    assert 0.8 < folding.shedder.share / (kv_per_s / 1_000) < 1.2


def test_a_kv_that_is_away_is_no_overload() -> None:
    """For a moment, or long: what is acked meanwhile is told when it is back."""
    for away_s, turned_away in ((2.0, 0), (4.5, 3_000), (30.0, 5_000)):
        folding = Folding(4_000)
        folding.run(10.0)
        folding.run(away_s, kv_is_there=False)
        folding.run(20.0)
        assert folding.turned_away <= turned_away, away_s
        assert folding.shedder.share == 1.0 and folding.oldest_s[-1] < 0.2


def test_a_long_outage_takes_no_memory() -> None:
    behind = Behind()
    for step in range(36_000):
        assert behind.look(10 + step, 10, step / 10).oldest_s <= AWAY_S
    assert behind.look(40_000, 20, 3_600.0).oldest_s > 3_580
    assert len(behind._ends) < 1_000


def test_it_recovers_within_seconds_and_never_sheds_everybody():
    shedder = Shedder(0.1, 2.0)
    now = run(shedder, 0.0, 60.0, 5.0)
    assert shedder.level == LEVEL_MIN and served(shedder, now)
    now = run(shedder, now, 3.0, 0.0)
    assert shedder.level == 1.0 and len(served(shedder, now)) == 2_000


def test_one_pause_of_the_machine_sheds_nobody():
    shedder = Shedder(0.1, 2.0)
    now = run(shedder, 0.0, 1.0, 0.001)
    shedder.waited(2.0, lambda: NO_BACKLOG, now + 2.0)
    now = run(shedder, now + 2.0 + WINDOW_S, 1.0, 0.001)
    assert shedder.level == 1.0


class Loop:
    """A process that can carry 4,000 sends a second, and takes in each turn of its loop what has
    come during the one before."""

    def __init__(self) -> None:
        self.shedder = Shedder(0.1, 2.0)
        self.waits: list[tuple[float, float]] = []  # of those that were served: came at, waited
        self.shed: list[float] = []
        self._now = self._comes = 0.0
        self._looks = LOOK_S
        self._count = 0

    def run(self, per_s: float, until: float) -> None:
        while self._now < until:
            began, served = self._now, []
            while self._comes <= began:
                self._count += 1
                if self.shedder.retry_ms(f"u{self._count % USERS}", False, self._now):
                    self._now += REFUSE_S
                    self.shed.append(self._comes)
                else:
                    self._now += SERVE_S
                    served.append(self._comes)
                self._comes += 1 / per_s
            self._now = max(self._now, began + 0.001)
            self.waits += [(at, self._now - at) for at in served]
            if self._now >= self._looks:
                self.shedder.waited(self._now - self._looks, lambda: NO_BACKLOG, self._now)
                self._looks = self._now + LOOK_S

    def waited(self, since: float, until: float) -> list[float]:
        return sorted(wait for at, wait in self.waits if since <= at < until)


@pytest.mark.parametrize(("times", "p99_s", "least"), [(1.3, 0.6, 0.7), (2.0, 0.6, 0.5)])
def test_what_is_served_beyond_the_capacity_is_served_in_time_and_all_is_soon_afterwards(
    times: float, p99_s: float, least: float
) -> None:
    """Before a turn looked at itself: 5.3 s at twice, and half of everybody shed for 4 s more."""
    loop = Loop()
    loop.run(4_000 * times, 8.0)
    waits = loop.waited(2.0, 8.0)
    assert waits[len(waits) * 99 // 100] < p99_s
    assert len(waits) / 6 > least * 4_000
    loop.run(2_000, 16.0)
    assert max(loop.shed) < 8.0 + 3.0
    assert loop.waited(11.0, 16.0)[-1] < 0.05


def test_three_times_the_capacity_is_no_collapse() -> None:
    """Refusing alone takes most of the processor then."""
    loop = Loop()
    loop.run(12_000, 8.0)
    waits = loop.waited(2.0, 8.0)
    assert waits[len(waits) * 99 // 100] < 2.0 and len(waits) / 6 > 500
    loop.run(2_000, 16.0)
    assert max(loop.shed) < 8.0 + 4.0


def test_a_user_is_served_for_a_while_and_then_it_is_another_s_turn():
    shedder = Shedder(0.1, 2.0)
    shedder.level = 0.5
    first = served(shedder, 100 * TURN_S)
    assert served(shedder, 100 * TURN_S + TURN_S * 0.9) == first
    turns = Counter(uid for turn in range(20) for uid in served(shedder, turn * TURN_S))
    assert len(turns) == 2_000  # nobody is left out for long


# ------------------------------------------------------------------------------ group load


def test_a_huge_group_waits_and_a_small_one_does_not():
    load = ConversationLoad(Limits(conversation_deliveries_per_s=10_000), 1_000)
    taken = 0
    while not (wait_ms := load.begin("g:huge", 1_000, 0.0)):
        load.end("g:huge")
        taken += 1
    assert 20 <= taken <= 21 and 0 < wait_ms < 1_000
    for _ in range(1_000):
        assert load.begin("g:small", 3, 0.0) == 0
        load.end("g:small")
    assert load.begin("g:huge", 1_000, wait_ms / 1000 + 0.001) == 0


def test_a_read_diffused_group_is_limited_by_its_messages_and_not_by_its_members():
    load = ConversationLoad(Limits(group_messages_per_s=50, group_in_flight=10), 500)
    for members in (501, 10_000):
        name, taken = f"g:{members}", 0
        while not load.begin(name, members, 0.0):
            load.end(name)
            taken += 1
        assert 100 <= taken <= 101  # two seconds' worth at once
        assert [load.begin(name, members, 10.0) for _ in range(11)] == [0] * 10 + [100]


def test_messages_that_are_not_durable_yet_are_bounded_for_each_conversation():
    load = ConversationLoad(Limits(conversation_in_flight=2), 500)
    assert [load.begin("d:a:b", 2, 0.0) for _ in range(3)] == [0, 0, 100]
    assert load.begin("d:a:c", 2, 0.0) == 0
    load.end("d:a:b")
    assert load.begin("d:a:b", 2, 0.0) == 0
