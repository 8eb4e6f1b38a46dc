"""Where the sessions of an IDC belong after a change of the policy; pure.

An IDC tells how many of its sessions are of which shard, not whose they are. So the placement
itself is asked, for a fixed sample of made-up users: their homes before and after the change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from imcore.region.model import Region
from services.policy.document import IdcPolicy, Policy
from services.policy.placement import home_idc

SAMPLES = 300
SAMPLES_MIN = 20  # fewer of one home say nothing about where they go next

_UIDS = [f"sample-{number}" for number in range(SAMPLES)]


class Load(NamedTuple):
    sessions: float
    messages_per_s: float


def spread(
    before: Policy, after: Policy, region: Region, idc: str, shards: Mapping[str, int]
) -> dict[str, float]:
    """Sessions by the IDC where they belong after the change; who belongs nowhere stays."""
    found: dict[str, float] = {}
    for shard, count in shards.items():
        for target, share in _homes(before, after, region, shard, idc).items():
            found[target] = found.get(target, 0.0) + share * count
    return found


def is_home(policy: Policy, region: Region, shard: str, idc: str) -> bool:
    """Whether anybody of this shard belongs there."""
    return any(home_idc(policy, region, shard, uid) == idc for uid in _UIDS)


def with_row(policy: Policy, idc: str, row: IdcPolicy) -> Policy:
    return replace(policy, idcs={**policy.idcs, idc: row})


def _homes(before: Policy, after: Policy, region: Region, shard: str, at: str) -> dict[str, float]:
    own = [uid for uid in _UIDS if home_idc(before, region, shard, uid, at) == at]
    uids = own if len(own) >= SAMPLES_MIN else _UIDS
    homes = Counter(home_idc(after, region, shard, uid, at) or at for uid in uids)
    return {idc: count / len(uids) for idc, count in homes.items()}
