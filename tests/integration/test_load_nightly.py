"""More than can be carried, over real sockets (`make nightly`)."""

from __future__ import annotations

import pytest

from benchmarks import overload
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
