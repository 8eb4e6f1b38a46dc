"""When to reconnect, when a connection is dead, the highest clock seen."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from imcore.errors import BadInput
from imcore.proto import client_pb2 as pb
from services.sdk.core.liveness import Due, Liveness
from services.sdk.core.parameters import Parameters
from services.sdk.core.reconnect import RETRY_AFTER_MAX_MS, STEADY_MS, Lost, Reconnect, Where
from services.sdk.core.seen import Seen
from services.sdk.core.waits import RETRY_MS, WAIT_MAX_MS, again_s
from services.sdk.ipconf import IpconfClient


def reconnect() -> Reconnect:
    return Reconnect(random.Random(1))


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1:8443", "http://localhost.example", "http://[2001:db8::1]", "fra:8443", ""],
)
def test_no_token_goes_to_an_ipconf_in_plain_text(url):
    with pytest.raises(BadInput):
        IpconfClient(["https://127.0.0.1:8443", url], None, random.Random(1))


@pytest.mark.parametrize("url", ["http://127.0.0.1:8443", "http://[::1]:1/", "http://localhost"])
def test_on_this_machine_it_may(url):
    IpconfClient([url], None, random.Random(1))


def test_first_the_same_gateway_then_ipconf():
    machine = reconnect()
    plans = [machine.lost(Lost("lost", STEADY_MS))]
    plans += [machine.lost(Lost("refused")) for _ in range(3)]
    assert [plan.where for plan in plans] == [Where.SAME, Where.SAME, Where.IPCONF, Where.IPCONF]
    assert plans[0].delay_ms <= 50


def test_backoff_doubles_to_a_bound_with_full_jitter():
    machine = reconnect()
    bounds = [100 << n for n in range(1, 20)]
    delays = [[reconnect_after(n, seed) for seed in range(40)] for n in (5, 12)]
    assert max(delays[0]) <= bounds[4] and max(delays[1]) <= 5_000
    assert max(delays[1]) > 3_000 and min(delays[1]) < 1_000  # spread over all of it
    assert machine.failures == 0


def reconnect_after(failures: int, seed: int) -> int:
    machine = Reconnect(random.Random(seed))
    for _ in range(failures):
        plan = machine.lost(Lost("no_answer"))
    return plan.delay_ms


def test_replaced_never_reconnects():
    assert reconnect().lost(Lost("replaced", 60_000)).where is Where.NOWHERE


def test_retry_after_is_honoured():
    plan = reconnect().lost(Lost("lost", 60_000, retry_after_ms=700))
    assert plan.where is Where.IPCONF and plan.delay_ms >= 700


def test_a_gateway_that_accepts_and_drops_at_once_is_backed_off_from():
    machine = reconnect()
    for _ in range(8):
        machine.lost(Lost("lost", lived_ms=20))
    assert machine.failures == 8
    machine.lost(Lost("lost", lived_ms=STEADY_MS))
    assert machine.failures == 1


def test_a_drained_gateway_is_not_tried_again():
    assert reconnect().lost(Lost("drained", 60_000)).where is Where.IPCONF


PARAMETERS = Parameters(heartbeat_ms=5_000, heartbeat_timeout_ms=2_000, idle_pull_ms=15_000)


def liveness() -> Liveness:
    return Liveness(PARAMETERS, random.Random(1), 100.0)


def test_heartbeats_are_spread():
    firsts = {round(Liveness(PARAMETERS, random.Random(seed), 0.0)._next, 1) for seed in range(50)}
    assert len(firsts) > 20 and min(firsts) >= 1.0 and max(firsts) <= 5.0


def test_an_unanswered_heartbeat_is_a_dead_connection():
    live = liveness()
    assert live.due(105.0) is Due.HEARTBEAT
    live.sent(105.0)
    live.news(106.9, True)  # bytes still come: that proves nothing
    assert live.due(106.9) is Due.NOTHING
    assert live.next_look(106.9) < 0.11
    assert live.due(107.0) is Due.DEAD


def test_a_long_wait_for_an_answer_makes_heartbeats_no_rarer():
    live = Liveness(PARAMETERS, random.Random(1), 100.0)
    live.sent(105.0)
    assert not live.answered()
    slow = replace(PARAMETERS, heartbeat_timeout_ms=9_000)
    live = Liveness(slow, random.Random(1), 100.0)
    live.sent(105.0)
    assert live.answered() and live.next_look(105.5) <= 4.5
    assert not live.answered()  # nothing was asked


def test_pushes_are_acked_within_a_second():
    live = liveness()
    live.sent(100.0)
    live.answered()
    live.news(100.2, True)
    assert live.due(100.9) is Due.NOTHING
    assert live.due(101.0) is Due.HEARTBEAT
    live.sent(101.0)
    live.answered()
    assert live.due(102.5) is Due.NOTHING  # nothing to ack


def test_an_idle_client_pulls_unasked():
    live = liveness()
    for at in (105.0, 110.0):
        live.sent(at)
        live.answered()
    assert live.due(113.9) is Due.NOTHING
    live.sent(114.9)
    live.answered()
    assert live.due(115.0) is Due.IDLE_PULL
    live.pulled(115.0)
    assert live.due(115.1) is Due.NOTHING


def test_the_highest_stamp_goes_with_its_mac():
    seen = Seen()
    seen.observe(pb.Event(stamp=pb.Stamp(hlc=5, key_id=1, mac=b"five")))
    seen.observe(pb.Response(stamp=pb.Stamp(hlc=3, key_id=2, mac=b"three")))
    seen.observe(pb.Response())
    assert seen.mark(pb.Request()).seen == pb.Stamp(hlc=5, key_id=1, mac=b"five")


def test_parameters_ignore_what_is_no_number():
    assert Parameters.of({"heartbeat_ms": 300, "fast_retries": "x", "other": 1}) == Parameters(
        heartbeat_ms=300
    )


def test_what_was_put_off_is_asked_for_no_sooner_than_told_and_not_by_all_at_once():
    rng = random.Random(1)
    waits = [again_s(pb.Error(retry_after_ms=1_000), rng) for _ in range(1_000)]
    assert 1.0 <= min(waits) < 1.05 and 1.45 < max(waits) <= 1.5
    assert again_s(pb.Error(), rng) >= RETRY_MS / 1000
    assert again_s(pb.Error(retry_after_ms=2**31), rng) <= 1.5 * WAIT_MAX_MS / 1000


def test_what_goes_on_failing_is_asked_for_more_and_more_rarely():
    rng = random.Random(1)
    waits = [again_s(pb.Error(), rng, failed) for failed in range(1, 100)]
    for failed, wait in enumerate(waits[:5]):
        assert 0.2 * 2**failed <= wait <= 0.3 * 2**failed
    assert all(5.0 <= wait <= 7.5 for wait in waits[5:])
    assert again_s(pb.Error(retry_after_ms=30_000), rng, 9) >= 30.0  # it said so


def test_a_gateway_that_asks_for_years_is_not_heeded_for_so_long():
    plan = reconnect().lost(Lost("overloaded", retry_after_ms=2**31))
    assert plan.where is Where.IPCONF and plan.delay_ms <= 2 * RETRY_AFTER_MAX_MS
