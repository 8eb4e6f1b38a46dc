"""More than can be carried, over real sockets (`make nightly`)."""

from __future__ import annotations

import pytest

from benchmarks import crowd, overload
from benchmarks.storm import CLIENTS, CONNECTS_PER_S, enough_files, storm


@pytest.mark.nightly
async def test_ten_thousand_clients_who_come_at_once_are_let_in_at_the_rate(figures):
    enough_files(CLIENTS)
    found = await storm(CLIENTS)
    figures("reconnect storm over real sockets", found)
    assert found["connected"] == CLIENTS
    assert found["most_in_a_second"] <= 2.1 * CONNECTS_PER_S
    assert found["took_s"] < 2 * CLIENTS / CONNECTS_PER_S


@pytest.mark.nightly
async def test_at_twice_the_sustained_rate_an_idc_sheds_answers_in_time_and_recovers(figures):
    found = await overload.measure(12.0)
    figures("overload", found)
    assert found["unanswered"] == found["unclear"] == 0
    assert found["accepted"] > 0.5 * found["sustained"]
    assert found["p99_ms"] < overload.IN_TIME_MS
    assert found["recovered_s"] < 5


@pytest.mark.nightly
async def test_ordinary_conversations_beside_a_group_of_ten_thousand_are_not_twice_as_late(
    figures,
):
    enough_files(CLIENTS + 2_000)
    found = await crowd.measure()
    figures("a group of 10,000 at 50 messages/s beside 1,000 conversations", found)
    alone, beside = found["alone"], found["beside"]
    assert alone["missing"] == beside["missing"] == 0
    assert found["seen_least"] == found["seen_most"] == found["group_said"]
    assert beside["p50_ms"] < 2 * alone["p50_ms"]
    assert beside["p99_ms"] < 2 * alone["p99_ms"]
    assert found["reconnected_s"] < 2 * CLIENTS / 500  # as a gateway lets them in
