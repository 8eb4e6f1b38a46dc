"""What an SDK says that things took, and how long it waits for a gateway."""

from __future__ import annotations

from services.sdk.core.parameters import Parameters
from services.sdk.core.timing import SAID_MS_MAX, Patience, Slowest

TOLD = Parameters(connect_timeout_ms=1_000, timeout_max_ms=5_000)


def test_the_slowest_is_said_but_not_what_a_device_slept_through() -> None:
    slowest = Slowest()
    assert (slowest.connect_ms, slowest.heartbeat_ms) == (None, None)
    for seconds in (0.2, 0.9, 0.3, SAID_MS_MAX / 1000 + 1):
        slowest.connected(seconds)
    slowest.answered(SAID_MS_MAX / 1000 + 1)
    assert (slowest.connect_ms, slowest.heartbeat_ms) == (900, None)
    slowest.answered(0.0)
    assert slowest.heartbeat_ms == 0


def round_of(patience: Patience, *reasons: str) -> float:
    patience.begins()
    for reason in reasons:
        patience.failed(reason)
    patience.in_vain()
    return patience.timeout_s(TOLD)


def test_where_nobody_answers_it_waits_twice_as_long_up_to_what_the_service_allows() -> None:
    patience = Patience()
    assert patience.timeout_s(TOLD) == 1.0
    assert [round_of(patience, "timeout", "mute") for _ in range(4)] == [2.0, 4.0, 5.0, 5.0]
    patience.connected(1.2, TOLD)  # in time only since it waited
    assert patience.timeout_s(TOLD) == 5.0
    patience.connected(0.9, TOLD)
    assert patience.timeout_s(TOLD) == 1.0


def test_a_word_in_time_says_that_the_path_is_not_what_is_slow() -> None:
    patience = Patience()
    for reason in ("refused", "unavailable", "protocol", "lost", "unauthenticated"):
        assert round_of(patience, "timeout", reason) == 1.0
        assert round_of(patience, reason) == 1.0
    assert round_of(patience) == 1.0  # nobody was dialled


def test_a_service_that_allows_nothing_is_waited_for_as_it_says() -> None:
    patience = Patience()
    for _ in range(3):
        round_of(patience, "timeout")
    assert patience.timeout_s(Parameters(connect_timeout_ms=1_500)) == 1.5
    low = Parameters(connect_timeout_ms=1_500, timeout_max_ms=1_000)
    assert patience.timeout_s(low) == 1.5
