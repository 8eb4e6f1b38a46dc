"""Which IDC is a client's home and in which order it tries the others; pure.

Weighted rendezvous hashing (Schindelhauer and Schomaker, 2005): each IDC gets a score from the uid
and its weight, the highest wins. A change of one weight moves clients to or from that IDC only.
A ramp below 100 % leaves out, by another hash of the uid, a share of the clients that would come to
the IDC; raising it only ever moves clients in.

ipconf answers new clients by it and the mover hands sessions over by it: one word for both.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

from imcore.region.model import Region
from services.policy.document import IdcState, Policy


def home_idc(policy: Policy, region: Region, shard: str, uid: str, at: str = "") -> str:
    """The IDC that this client belongs to. ``at``: where it is now (a cordoned IDC keeps its own).
    Empty when no IDC takes clients."""
    order = preference(policy, region, shard, uid)
    return next((idc for idc in order if takes(policy, idc, uid, at)), "")


def takes(policy: Policy, idc: str, uid: str, at: str = "") -> bool:
    """Whether the IDC takes this client by the policy's word."""
    known = policy.idcs.get(idc)
    if known is None or known.state is IdcState.ACTIVE:
        return known is None or known.ramp >= 100 or share(uid, idc) * 100 < known.ramp
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
        name: -weight / math.log(share(uid, name, b"home"))
        for name, weight in weights.items()
        if weight > 0
    }
    return sorted(scores, key=lambda name: (-scores[name], name))


def share(uid: str, name: str, purpose: bytes = b"ramp") -> float:
    """A number in (0, 1) that every process agrees on."""
    digest = hashlib.blake2b(f"{uid}\0{name}".encode(), digest_size=8, person=purpose).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64
