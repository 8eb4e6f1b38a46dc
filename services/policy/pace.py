"""How fast an IDC hands its sessions over; pure."""

from __future__ import annotations

from imcore.region.model import Region
from services.policy.document import SERVING, IdcState, Policy


def moves_per_s(policy: Policy, region: Region, own: str) -> float:
    """Sessions a second that ``own`` may hand over. A rate that was asked for is that of the whole
    operation, shared by all who give; those who take never get more than they admit."""
    running = policy.operation
    if running is None:
        return policy.moves_per_s
    others = [idc.name for idc in region.spec.idcs if idc.name != running.idc]
    if running.idc == own:
        takers = [running.target] if running.target else active(policy, others)
        givers = 1
    elif policy.state(running.idc) is IdcState.ACTIVE:  # it gets its clients back
        takers = [running.idc]
        givers = max(1, sum(policy.state(name) in SERVING for name in others))
    else:  # what others hand over meanwhile belongs to another move
        return policy.moves_per_s
    admitted = {idc.name: idc.capacity.logins_per_s for idc in region.spec.idcs}
    most = min((admitted[name] for name in takers if name in admitted), default=policy.moves_per_s)
    asked = running.rate / givers if running.rate else policy.moves_per_s
    return min(asked, most / givers)


def active(policy: Policy, names: list[str]) -> list[str]:
    return [name for name in names if policy.state(name) is IdcState.ACTIVE]
