"""Who waits for a copy elsewhere, and when they are answered (rules 4, 13)."""

from __future__ import annotations

from services.im.replication import ReplicationTracker


def test_waiters_are_answered_when_enough_others_hold_their_lsn() -> None:
    tracker = ReplicationTracker(2, 2)
    answers: list[tuple[str, bool]] = []
    tracker.wait(5, 10.0, lambda held: answers.append(("five", held)))
    tracker.wait(7, 10.0, lambda held: answers.append(("seven", held)))
    assert tracker.peer_holds("iad", 9)
    assert answers == []
    assert not tracker.peer_holds("sin", 6)  # the best copy has not grown
    assert answers == [("five", True)]
    tracker.peer_holds("sin", 4)  # an old report takes nothing back
    tracker.peer_holds("sin", 7)
    assert answers[1:] == [("seven", True)]


def test_who_waits_too_long_is_told_so_once() -> None:
    tracker = ReplicationTracker(1, 2)
    answers: list[bool] = []
    tracker.wait(5, 10.0, answers.append)
    tracker.wait(3, 20.0, answers.append)
    tracker.expire(11.0)
    tracker.peer_holds("iad", 9)
    assert answers == [False, True]


def test_a_region_of_one_idc_counts_what_is_durable_as_replicated() -> None:
    tracker = ReplicationTracker(1, 0)
    answers: list[bool] = []
    tracker.wait(5, 10.0, answers.append)
    assert answers == [True]
    assert tracker.level(1) >= 5
