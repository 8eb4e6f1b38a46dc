"""When a client polls, and when it tries a long connection again."""

from __future__ import annotations

from services.sdk.core.degrade import BACK_MAX_S, BACK_S, CUTS, LASTED_MS, Degrade
from services.sdk.core.reconnect import Lost


def after(*lost: Lost) -> Degrade:
    machine = Degrade()
    for each in lost:
        machine.ended(False, each, 100.0)
    return machine


def test_cuts_in_a_row_make_it_poll():
    assert not after(*[Lost("lost", 3_000)] * (CUTS - 1)).polling
    assert after(*[Lost("lost", 3_000)] * (CUTS - 1), Lost("mute")).polling


def test_what_the_gateway_said_or_nobody_heard_is_no_cut():
    for reason in ("replaced", "shutdown", "slow_consumer", "refused", "timeout", "no_answer"):
        assert not after(*[Lost(reason, 3_000)] * 9).polling


def test_a_connection_that_lasted_forgets_the_cuts_before():
    cut, lasted = Lost("lost", 3_000), Lost("lost", LASTED_MS)
    assert not after(cut, cut, lasted, cut, cut).polling


def test_it_goes_back_later_and_later_while_connections_are_cut():
    machine = after(*[Lost("dead", 3_000)] * CUTS)
    assert machine.back_at == 100.0 + BACK_S
    machine.back()
    assert not machine.polling
    machine.ended(False, Lost("lost", 3_000), 200.0)  # on probation: one is enough
    assert machine.polling and machine.back_at == 200.0 + 2 * BACK_S
    for _ in range(20):
        machine.still_no_way(1_000.0)
    assert machine.back_at == 1_000.0 + BACK_MAX_S
    machine.back()
    machine.ended(False, Lost("lost", LASTED_MS), 9_000.0)
    machine.ended(False, Lost("lost", 3_000), 9_100.0)
    assert not machine.polling  # the proxy is gone


def test_another_network_is_tried_at_once_and_has_all_its_cuts():
    machine = after(*[Lost("dead", 3_000)] * CUTS)
    for _ in range(20):
        machine.still_no_way(1_000.0)
    machine.changed_network(1_100.0)
    assert machine.polling and machine.back_at == 1_100.0
    machine.still_no_way(1_100.0)
    assert machine.back_at == 1_100.0 + BACK_S
    other = after(*[Lost("lost", 3_000)] * (CUTS - 1))
    other.changed_network(200.0)
    other.ended(False, Lost("lost", 3_000), 210.0)
    assert not other.polling


def test_polling_that_cannot_be_had_is_left():
    machine = after(*[Lost("lost", 3_000)] * CUTS)
    machine.ended(True, Lost("lost", 8_000), 110.0)
    assert machine.polling
    machine.ended(True, Lost("protocol"), 120.0)
    assert not machine.polling
