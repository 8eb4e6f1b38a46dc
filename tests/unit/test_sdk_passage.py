"""When QUIC is tried, and for how long it is left alone."""

from services.sdk.core.parameters import Parameters
from services.sdk.core.passage import (
    AGAIN_MAX_S,
    AGAIN_S,
    NETWORKS_MAX,
    Passage,
    Passages,
    head_start_s,
)
from services.sdk.core.reconnect import Lost


def test_a_network_without_udp_is_left_alone_for_longer_and_longer():
    way, now = Passage(), 100.0
    assert way.open(now)
    waits = []
    for _ in range(8):
        way.blocked(now)
        way.blocked(now)  # of two races at a time: said once
        assert not way.open(now)
        began = now
        while not way.open(now):
            now += 60.0
        waits.append(now - began)
    assert waits[0] == AGAIN_S and waits[1] == 2 * AGAIN_S and waits[-1] == AGAIN_MAX_S


def test_connections_that_break_soon_twice_in_a_row_close_it_and_one_that_lasts_opens_it_for_good():
    way = Passage()
    way.ended(Lost("dead", 3_000), 0.0)
    way.ended(Lost("shutdown", 3_000), 0.0)  # somebody's word
    way.ended(Lost("lost", 90_000), 0.0)
    way.ended(Lost("lost", 3_000), 0.0)
    assert way.open(0.0)
    way.ended(Lost("lost", 3_000), 0.0)
    assert not way.open(0.0)
    way.ended(Lost("lost", 90_000), AGAIN_S)
    way.blocked(AGAIN_S)
    assert way.open(2 * AGAIN_S)  # not doubled: it went meanwhile


def test_each_network_by_itself_and_not_without_end():
    known = Passages()
    known.of(("wifi", "office")).blocked(0.0)
    assert known.of(("wifi", "home")).open(0.0)
    assert not known.of(("wifi", "office")).open(0.0)
    for number in range(NETWORKS_MAX):
        known.of(("wifi", str(number)))
    assert known.of(("wifi", "office")).open(0.0)


def test_tls_follows_before_anybody_notices():
    assert head_start_s(None, True) == 0.25
    assert head_start_s(0.2, True) == 0.2 * 1.5
    assert head_start_s(9.0, True) == 0.5
    assert head_start_s(9.0, False) == 0.1


def test_the_order_of_transports_is_ipconfs():
    assert Parameters.of({"transports": ["quic", "tcp"]}).transports == ("quic", "tcp")
    assert Parameters.of({}).transports == ()
    assert Parameters.of({"transports": 3, "heartbeat_ms": "x"}) == Parameters()
