"""Who the canaries of a drill are, and who of them speaks to whom; pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from imcore.checker.ledger import Pair
from services.loadgen.population import Client, Population


def canary_pairs(run: str, idcs: list[str]) -> dict[str, Pair]:
    """By canary's uid: its home, and that of the one it talks with. Two inside each IDC."""
    pairs: dict[str, Pair] = {}
    for a in idcs:
        for b in idcs:
            pairs[f"{run}-c-{a}-{b}"] = (a, b)
        pairs[f"{run}-c-{a}-{a}-2"] = (a, a)
    return pairs


def peer_of(uid: str, run: str, pair: Pair) -> str:
    """The other canary of its conversation."""
    a, b = pair
    if a != b:
        return f"{run}-c-{b}-{a}"
    return uid.removesuffix("-2") if uid.endswith("-2") else f"{uid}-2"


def with_canaries(
    people: Population, canaries: dict[str, Pair], address: Callable[[str], tuple[str, str]]
) -> tuple[Population, list[tuple[str, str]]]:
    """The population with them, and who of them speaks to whom."""
    run = next(iter(canaries)).partition("-c-")[0]
    clients = [Client(uid, "phone", *address(home), home) for uid, (home, _) in canaries.items()]
    talks = [(uid, peer_of(uid, run, pair)) for uid, pair in canaries.items()]
    pairs = {tuple(sorted(talk)) for talk in talks}
    return (
        replace(
            people,
            clients=people.clients + tuple(clients),
            pairs=people.pairs + tuple((a, b) for a, b in sorted(pairs)),
        ),
        talks,
    )
