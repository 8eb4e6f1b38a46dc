"""In which order a client is told to try gateways; pure. Homes and fallbacks are the placement's
(``services.policy.placement``), loads the gateways' own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from imcore.region.model import GatewayOrder, Region
from services.ipconf.directory import SLOW_START_S, Gateway
from services.policy.document import IdcState, Policy
from services.policy.placement import preference, share, takes

_BOUND = 1.25  # times the mean of the IDC's gateways
_BOUND_LEAST = 20  # connections above the mean: few of them are never spread evenly


class Scored(NamedTuple):
    gateway: Gateway
    score: float


def rank(
    policy: Policy,
    region: Region,
    shard: str,
    uid: str,
    live: Mapping[str, Sequence[Gateway]],
    at: str = "",
    minority: Collection[str] = (),
) -> list[Scored]:
    """The gateways to dial, best first: home, then fallbacks. ``minority``: IDCs that say of
    themselves that they have no majority; they come last. IDCs that the policy excludes are left
    out, unless nothing else is alive: a client that reaches nothing else is still served."""
    order = preference(policy, region, shard, uid)
    fit = [idc for idc in order if takes(policy, idc, uid, at)]
    # A ramp limits who is at home there, not who may flee there.
    fit += [idc for idc in order if idc not in fit and policy.state(idc) is IdcState.ACTIVE]
    fit = [idc for idc in fit if idc not in minority] + [idc for idc in fit if idc in minority]
    alive = [idc for idc in fit if live.get(idc)] or [idc for idc in order if live.get(idc)]
    ordered = by_hash if region.spec.routing.gateways is GatewayOrder.HASH else by_load
    return [
        Scored(gateway, _score(position, len(alive), gateway))
        for position, idc in enumerate(alive)
        for gateway in ordered(uid, live[idc])
    ]


def by_load(uid: str, gateways: Sequence[Gateway]) -> list[Gateway]:
    """Least loaded first; loads within a tenth count as equal, and then each client has its own
    order, so that not all of them run to the same one. One that has just begun counts as loaded as
    the others at first and comes down from there (slow start): else all would run to it."""
    loads, others = sum(each.load for each in gateways), max(1, len(gateways) - 1)

    def key(each: Gateway) -> tuple[int, float]:
        mean = (loads - each.load) / others
        load = max(each.load, mean * (1 - each.age_s / SLOW_START_S))
        return int(load * 10), share(uid, each.name, b"gateway")

    return sorted(gateways, key=key)


def by_hash(uid: str, gateways: Sequence[Gateway]) -> list[Gateway]:
    """In an order of the client's own (rendezvous hashing), the same for all devices of a user: a
    gateway that comes takes its share of each other one's users, one that goes leaves its own to
    all. Those that have too many connections come last (bounded loads)."""
    mean = sum(each.connections for each in gateways) / max(1, len(gateways))
    bound = max(_BOUND * mean, mean + _BOUND_LEAST)
    return sorted(
        gateways,
        key=lambda each: (
            each.connections > bound or each.load >= 1,
            # Not by its name, which is new in each life of its process.
            share(uid, f"{each.host}:{each.port}", b"gateway"),
        ),
    )


def _score(position: int, idcs: int, gateway: Gateway) -> float:
    """1 is best; a nearer IDC's full gateway is still above a farther one's empty."""
    return round((idcs - position - 0.9 * int(gateway.load * 10) / 10) / idcs, 4)
