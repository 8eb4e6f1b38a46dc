"""Seeds side by side, each in a process of its own."""

from __future__ import annotations

from functools import partial
from itertools import count

from imcore import countries
from services.sim.apart import outcomes


def _tables(seed: int) -> int:
    return countries._table.cache_info().currsize


def test_every_seed_is_run_once() -> None:
    assert sorted(outcomes(partial(pow, 2), range(5), 2)) == [1, 2, 4, 8, 16]


def test_a_seed_is_taken_only_when_a_core_is_free_for_it() -> None:
    taken = count()
    found = outcomes(partial(pow, 2), taken, 2)
    assert next(found) in (1, 2)
    found.close()
    assert next(taken) <= 3


def test_what_every_seed_would_load_is_there_when_it_begins() -> None:
    assert list(outcomes(_tables, [1], 1)) == [1]
