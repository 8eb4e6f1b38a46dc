"""Who takes part, and when they send: the shape that the demo promises."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import yaml

from imcore.errors import BadInput
from imcore.region.load import check_text
from imctl.commands.load import home_countries
from services.loadgen.population import Population, make_population, public_country
from services.loadgen.schedule import SIZE_MAX, Arrival, Rates, Text, arrivals, size

COUNTRIES = {"fra": ["DE", "FR"], "iad": ["US", "CA"], "sin": ["SG", "JP"]}


@pytest.fixture(scope="module")
def population() -> Population:
    return make_population(300, COUNTRIES, random.Random(7), public_country)


def test_three_hundred_clients_a_third_with_two_devices(population: Population) -> None:
    devices = Counter(client.uid for client in population.clients)
    assert len(devices) == 300
    assert sum(count == 2 for count in devices.values()) == 100
    homes = Counter(client.home for client in population.clients)
    assert set(homes) == set(COUNTRIES) and min(homes.values()) > 110


def test_addresses_are_public_and_of_their_country(population: Population) -> None:
    lookup = public_country
    for client in population.clients:
        assert IPv4Address(client.address).is_global
        assert lookup(client.address) == client.country
        assert client.country in COUNTRIES[client.home]
    assert len({client.address for client in population.clients}) > 300


def test_private_and_reserved_addresses_have_no_country() -> None:
    lookup = public_country
    assert [lookup(a) for a in ("10.1.2.3", "127.0.0.1", "100.64.0.1", "192.0.2.9")] == [None] * 4


def test_pairs_cross_idcs_and_groups_have_their_sizes(population: Population) -> None:
    assert len(population.pairs) == 150
    assert len({uid for pair in population.pairs for uid in pair}) == 300
    assert population.crossing() >= 0.3 * 150
    assert [len(set(group.members)) for group in population.groups] == [30] * 10 + [200]


def test_the_seed_decides(population: Population) -> None:
    lookup = public_country
    assert make_population(300, COUNTRIES, random.Random(7), lookup) == population
    assert make_population(300, COUNTRIES, random.Random(8), lookup) != population


@pytest.mark.parametrize("users", [2, 3, 7])
def test_few_clients(users: int) -> None:
    small = make_population(users, COUNTRIES, random.Random(1), public_country)
    assert len(small.pairs) == users // 2
    assert {len(group.members) for group in small.groups} == {users}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="at least 2"):
        make_population(1, COUNTRIES, random.Random(1), public_country)
    with pytest.raises(BadInput, match="no public network in DE"):
        make_population(2, {"fra": ["DE"]}, random.Random(1), lambda address: None)


def first(count: int, seed: int = 3) -> list[Arrival]:
    source = arrivals(Rates(300, 25), 150, [30] * 10 + [200], random.Random(seed))
    return list(itertools.islice(source, count))


def test_arrivals_keep_their_rates() -> None:
    drawn = first(9000)
    assert 28 < drawn[-1].at < 32
    to_groups = [arrival for arrival in drawn if arrival.group]
    assert 21 < len(to_groups) / drawn[-1].at < 29
    assert 0.02 < sum(a.target == 10 for a in to_groups) / len(to_groups) < 0.09
    assert {arrival.target for arrival in drawn if not arrival.group} == set(range(150))
    assert 0.3 < sum(arrival.answer for arrival in drawn) / len(drawn) < 0.36
    assert first(9000) == drawn


@pytest.mark.parametrize("rates", [Rates(0, 0), Rates(10, 11), Rates(10, -1)])
def test_rates_that_cannot_be(rates: Rates) -> None:
    with pytest.raises(ValueError, match="rate"):
        next(arrivals(rates, 1, [], random.Random(1)))


def test_sizes_are_those_of_chat() -> None:
    rng = random.Random(5)
    sizes = sorted(size(rng) for _ in range(10_000))
    assert 100 < sizes[5000] < 140
    assert sizes[-1] == SIZE_MAX and sum(value > 1000 for value in sizes) > 20
    text = Text(rng)
    assert [len(text.take(n)) for n in (1, 77, SIZE_MAX)] == [1, 77, SIZE_MAX]


def test_a_region_that_tells_no_countries_apart_has_clients_of_its_own_country() -> None:
    document = yaml.safe_load(Path("regions/three-idc.yaml").read_text())
    spec = document["spec"]
    spec["idcs"], spec["links"] = spec["idcs"][:1], []
    shard = {"name": "all", "match": {}, "weights": {"fra": 1}, "fallback": []}
    spec["geo"] = {"default": "all", "shards": [shard]}
    loaded = check_text(yaml.safe_dump(document), "one.yaml")
    assert loaded.region is not None, loaded.problems
    assert home_countries(loaded.region) == {"fra": ["DE"]}
