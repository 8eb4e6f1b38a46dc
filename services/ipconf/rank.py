"""Which IDC is a client's home and in which order it tries the others; pure.

Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each IDC gets a score from the uid
and its weight, the highest wins. A change of one weight moves clients to or from that IDC only.
A ramp below 100 % leaves out, by another hash of the uid, a share of the clients that would come to
the IDC; raising it only ever moves clients in.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from imcore.region.model import Region
from services.control.policy import IdcState, Policy
from services.ipconf.directory import Gateway


class Scored(NamedTuple):
    gateway: Gateway
    score: float


def home_idc(policy: Policy, region: Region, shard: str, uid: str, at: str = "") -> str:
    """The IDC that this client belongs to. ``at``: where it is now (a cordoned IDC keeps its own).
    Empty when no IDC takes clients."""
    order = preference(policy, region, shard, uid)
    return next((idc for idc in order if takes(policy, idc, uid, at)), "")


def takes(policy: Policy, idc: str, uid: str, at: str = "") -> bool:
    """Whether the IDC takes this client by the policy's word."""
    known = policy.idcs.get(idc)
    if known is None or known.state is IdcState.ACTIVE:
        return known is None or known.ramp >= 100 or _share(uid, idc) * 100 < known.ramp
    return known.state is IdcState.CORDONED and at == idc


def preference(policy: Policy, region: Region, shard: str, uid: str) -> list[str]:
    """All IDCs, best first, whatever their state: by the shard's weights, then its fallback order,
    then the rest. The target of a switchover comes up to right behind the IDC it takes over."""
    rule = next((each for each in region.spec.geo.shards if each.name == shard), None)
    if rule is None:
        rule = next(each for each in region.spec.geo.shards if each.name == region.spec.geo.default)
    names = [idc.name for idc in region.spec.idcs]
    weights = policy.weights.get(rule.name, rule.weights)
    order = rendezvous(uid, {idc: weight for idc, weight in weights.items() if idc in names})
    order += [idc for idc in [*rule.fallback, *names] if idc not in order]
    order = list(dict.fromkeys(idc for idc in order if idc in names))
    for idc, known in policy.idcs.items():
        if known.target in order and idc in order:
            source, target = order.index(idc), order.index(known.target)
            if source < target:  # its own clients, whom it comes first for, stay where they are
                order.insert(source + 1, order.pop(target))
    return order


def rendezvous(uid: str, weights: Mapping[str, float]) -> list[str]:
    """Names with a weight above 0, best first for this uid."""
    scores = {
        name: -weight / math.log(_share(uid, name, b"home"))
        for name, weight in weights.items()
        if weight > 0
    }
    return sorted(scores, key=lambda name: (-scores[name], name))


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
    return [
        Scored(gateway, _score(position, len(alive), gateway))
        for position, idc in enumerate(alive)
        for gateway in by_load(uid, live[idc])
    ]


def by_load(uid: str, gateways: Sequence[Gateway]) -> list[Gateway]:
    """Least loaded first; loads within a tenth count as equal, and then each client has its own
    order, so that not all of them run to the same one."""
    return sorted(
        gateways, key=lambda each: (int(each.load * 10), _share(uid, each.name, b"gateway"))
    )


def _score(position: int, idcs: int, gateway: Gateway) -> float:
    """1 is best; a nearer IDC's full gateway is still above a farther one's empty."""
    return round((idcs - position - 0.9 * int(gateway.load * 10) / 10) / idcs, 4)


def _share(uid: str, name: str, purpose: bytes = b"ramp") -> float:
    """A number in (0, 1) that every process agrees on."""
    digest = hashlib.blake2b(f"{uid}\0{name}".encode(), digest_size=8, person=purpose).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64
