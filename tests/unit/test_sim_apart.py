"""Seeds side by side, each in a process of its own."""

from __future__ import annotations

from functools import partial
from itertools import count

from services.sim.apart import outcomes


def test_every_seed_is_run_once() -> None:
    assert sorted(outcomes(partial(pow, 2), range(5), 2)) == [1, 2, 4, 8, 16]


def test_a_seed_is_taken_only_when_a_core_is_free_for_it() -> None:
    taken = count()
    found = outcomes(partial(pow, 2), taken, 2)
    assert next(found) in (1, 2)
    found.close()
    assert next(taken) <= 3
