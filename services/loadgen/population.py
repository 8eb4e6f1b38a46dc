"""Who takes part: users with real public addresses, their devices, whom they talk to. Pure.

A third of the users have two devices, one in four of the second ones in another part of the world;
every device is one connection. Every user is in one 1:1 pair, and so many pairs cross IDCs as
``crossing`` says; ten groups of 30 and one of 200 (fewer when there are fewer users). The same
seed gives the same population.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import NamedTuple

from imcore.countries import country_of
from imcore.errors import BadInput

TRIES_MAX = 200_000


class Client(NamedTuple):
    """One device. ``home``: the IDC that the geo policy should give its address."""

    uid: str
    device: str
    address: str
    country: str
    home: str


class Group(NamedTuple):
    name: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Population:
    clients: tuple[Client, ...]
    pairs: tuple[tuple[str, str], ...]
    groups: tuple[Group, ...]

    def crossing(self) -> int:
        """Pairs whose two users live in different IDCs."""
        homes = {client.uid: client.home for client in reversed(self.clients)}
        return sum(homes[left] != homes[right] for left, right in self.pairs)


Lookup = Callable[[str], str | None]


def public_country(address: str) -> str | None:
    """Of a public IPv4 address, by the offline table, else None."""
    return (country_of(address) or None) if IPv4Address(address).is_global else None


class Addresses:
    """Draws public addresses until enough of the wanted countries are found: real networks, each
    as likely as it is large."""

    def __init__(self, rng: random.Random, lookup: Lookup) -> None:
        self._rng = rng
        self._lookup = lookup
        self._stock: dict[str, list[str]] = {}

    def take(self, countries: Sequence[str]) -> tuple[str, str]:
        """An address nobody has been given, and its country. Raises BadInput."""
        for country in countries:
            if stock := self._stock.get(country):
                return stock.pop(), country
        for _ in range(TRIES_MAX):
            address = str(IPv4Address(self._rng.randrange(1 << 24, 224 << 24)))
            country = self._lookup(address) or ""
            if country in countries:
                return address, country
            if country:
                self._stock.setdefault(country, []).append(address)
        raise BadInput(f"the country table has no public network in {', '.join(countries)}")


def make_population(
    users: int,
    countries: Mapping[str, Sequence[str]],
    rng: random.Random,
    lookup: Lookup,
    prefix: str = "u",
    crossing: float = 0.4,
) -> Population:
    """``countries``: by IDC, the countries that it is home to. ``prefix`` keeps the uids of one
    run apart from another's. Raises BadInput."""
    if users < 2:
        raise BadInput(f"expected at least 2 clients, got {users}")
    addresses = Addresses(rng, lookup)
    idcs = sorted(idc for idc, where in countries.items() if where)
    clients: list[Client] = []
    homes: dict[str, str] = {}
    for number in range(users):
        uid = f"{prefix}{number:04d}"
        homes[uid] = home = idcs[number % len(idcs)]
        address, country = addresses.take(_shuffled(countries[home], rng))
        clients.append(Client(uid, "phone", address, country, home))
        turn = number // len(idcs)  # so that it falls on every IDC alike
        if number % 3 == turn % 3:
            if turn % 4 == 0:
                home = idcs[(number + 1) % len(idcs)]
                address, country = addresses.take(_shuffled(countries[home], rng))
            clients.append(Client(uid, "laptop", address, country, home))
    uids = list(homes)
    return Population(
        tuple(clients), tuple(_pairs(uids, homes, crossing, rng)), tuple(_groups(uids, rng))
    )


def _shuffled(countries: Sequence[str], rng: random.Random) -> list[str]:
    mixed = list(countries)
    rng.shuffle(mixed)
    return mixed


def _pairs(
    uids: list[str], homes: Mapping[str, str], crossing: float, rng: random.Random
) -> list[tuple[str, str]]:
    """Every user in one pair (one of an odd number in none); at least ``crossing`` of the pairs
    cross IDCs where there is more than one."""
    left = list(uids)
    rng.shuffle(left)
    wanted = -(-int(crossing * 1000) * (len(uids) // 2) // 1000)
    pairs: list[tuple[str, str]] = []
    while len(left) > 1:
        first = left.pop()
        cross = len(pairs) < wanted
        other = next((uid for uid in left if (homes[uid] != homes[first]) == cross), left[-1])
        left.remove(other)
        pairs.append((first, other))
    return pairs


def _groups(uids: list[str], rng: random.Random) -> list[Group]:
    """Ten of 30 and one of 200; with fewer users as many as there are."""
    groups = [Group(f"team {n}", tuple(rng.sample(uids, min(30, len(uids))))) for n in range(10)]
    groups.append(Group("everybody", tuple(rng.sample(uids, min(200, len(uids))))))
    return groups
