"""When a MirrorMaker is started again, by what is heard of it."""

from __future__ import annotations

from imctl.engines.mirror_watch import BACKOFF_MOST_S, SILENT_MOST_S, SILENT_S, STARTING_S, Watch


def silent_after(watch: Watch, heartbeats: dict[str, int]) -> float:
    """Seconds until somebody is silent for too long, while nothing new is heard."""
    passed = 0.0
    while not watch.looked(heartbeats, 2.0):
        passed += 2.0
        assert passed < 1000
    return passed + 2.0


def test_a_flow_that_was_never_heard_of_is_silent_after_the_limit() -> None:
    watch = Watch(["fra", "sin"])
    assert silent_after(watch, {}) == STARTING_S
    assert watch.looked({}, 2.0) == ["fra", "sin"]


def test_what_the_one_before_left_behind_is_no_sign_of_life() -> None:
    """Neither when the keeper begins, nor when it starts its MirrorMaker again."""
    watch = Watch(["fra"])
    assert silent_after(watch, {"fra": 1}) == STARTING_S
    watch.restart()
    assert silent_after(watch, {"fra": 2}) == STARTING_S
    watch.restart()
    watch.looked({"fra": 2}, 2.0)
    watch.looked({"fra": 3}, 2.0)
    assert silent_after(watch, {"fra": 3}) == SILENT_S


def test_one_silent_flow_is_enough() -> None:
    watch = Watch(["fra", "sin"])
    watch.looked({}, 2.0)  # the first look after a start
    for now in range(14):
        assert watch.looked({"fra": now, "sin": 7}, 2.0) == []
    found: list[str] = []
    for now in range(20, 24):
        found = watch.looked({"fra": now, "sin": 7}, 2.0)
    assert found == ["sin"]


def test_nobody_is_silent_while_the_kafka_does_not_answer() -> None:
    watch = Watch(["fra"])
    for _ in range(100):
        assert watch.looked({}, SILENT_S - 1) == []
        watch.unanswered()


def test_starts_that_do_not_help_become_rare_and_a_sign_of_life_forgets_them() -> None:
    watch = Watch(["fra"])
    limits, waits = [], []
    for _ in range(8):
        limits.append(silent_after(watch, {}))
        waits.append(watch.restart())
    assert limits == [90, 90, 180, 300, 300, 300, 300, 300]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    assert (max(limits), max(waits)) == (SILENT_MOST_S, BACKOFF_MOST_S)
    watch.looked({}, 2.0)  # the first look after a start
    assert watch.looked({"fra": 1}, 2.0) == []
    assert silent_after(watch, {"fra": 1}) == SILENT_S
    assert watch.restart() == 1.0
    assert silent_after(watch, {"fra": 1}) == STARTING_S
