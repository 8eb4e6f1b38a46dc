"""What simulated clients say of friends, settings and groups is judged, and so are their kicks."""

from __future__ import annotations

import random

import pytest

from services.loadgen.logins import covering
from services.loadgen.population import make_population
from services.sdk import Client
from services.sim.asking import Asking
from services.sim.busy import Busy, lookers
from services.sim.region import COUNTRIES, Layout
from services.sim.relations import Relations
from services.sim.ruling import Ruling
from services.sim.run import USERS, run_seed

SEED = 7
SECONDS = 8.0


async def _nothing(*what: object) -> None:
    """What an IDC does that forgets what it has answered."""


@pytest.mark.parametrize(
    ("busy", "kinds", "request_", "found"),
    [
        (Relations, ("friend",), "request_friend", "word_lost: "),
        (Relations, ("friend",), "block", "word_lost: "),
        (Relations, ("pin or mute",), "mute", "word_lost: "),
        (Ruling, ("create ruled group", "rename"), "rename", "word_lost: "),
        (Ruling, ("create ruled group", "announce"), "announce", "word_lost: "),
        (Ruling, ("create ruled group", "role"), "set_role", "word_lost: "),
        (Ruling, ("create ruled group", "put out or in"), "remove", "word_lost: "),
        (Ruling, ("create ruled group", "hand over"), "set_role", "word_lost: "),
        (Asking, ("kick",), "kick", "kick: "),
    ],
)
def test_what_is_answered_and_not_done_is_found(
    monkeypatch: pytest.MonkeyPatch,
    busy: type[Busy],
    kinds: tuple[str, ...],
    request_: str,
    found: str,
) -> None:
    monkeypatch.setattr(busy, "kinds", {kind: busy.kinds[kind] for kind in kinds})
    monkeypatch.setattr(busy, "per_s", 5.0)
    monkeypatch.setattr(Client, request_, _nothing)
    violated = run_seed(SEED, SECONDS).violated
    assert violated
    assert all(each.startswith(found) for each in violated)


def test_all_of_it_is_done_and_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for busy in (Relations, Ruling, Asking):
        monkeypatch.setattr(busy, "per_s", 6.0)
    outcome = run_seed(SEED, 2 * SECONDS)
    assert not outcome.violated
    for busy in (Relations, Ruling, Asking):
        assert all(outcome.doings[kind] for kind in busy.kinds), outcome.doings


def test_who_says_something_logs_in_afresh_anyway() -> None:
    """Else every word would cost a login in each IDC."""
    country_of = Layout().country_of
    population = make_population(USERS, COUNTRIES, random.Random(1), country_of)
    members: dict[str, tuple[str, ...]] = {f"d:{a}:{b}": (a, b) for a, b in population.pairs}
    members |= {group.name: group.members for group in population.groups}
    looks = {look.uid for look in covering(members)}
    assert set(lookers(population)) <= looks
