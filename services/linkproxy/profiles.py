"""Networks that clients have to live with, as data for the link proxy.

A profile is a cycle of phases: so many seconds of such a link. The figures are round ones of the
usual size (published measurements of mobile networks differ by more than a factor of two among
themselves); what matters is the shape: how long nothing gets through, how far replies are, how soon
a connection is forgotten.
"""

from __future__ import annotations

import asyncio
from itertools import cycle
from typing import NamedTuple

from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.proxy import Fault, LinkProxy


class Phase(NamedTuple):
    seconds: float
    spec: LinkSpec
    mode: Mode = Mode.PASS


LTE = LinkSpec(delay_ms=30, jitter_ms=10, loss=0.005, rate_kbit=20_000)
EDGE = LinkSpec(delay_ms=300, jitter_ms=100, loss=0.03, rate_kbit=120)
# The last bars of a cell: slow, far, and much is sent twice.
FADING = LinkSpec(delay_ms=150, jitter_ms=80, loss=0.1, rate_kbit=500)

PROFILES: dict[str, tuple[Phase, ...]] = {
    # Stations with coverage, tunnels without; in and out by a weak cell.
    "subway": (
        Phase(30, LTE),
        Phase(5, FADING),
        Phase(40, FADING, Mode.DROP),
        Phase(5, FADING),
    ),
    # In and out again: shorter than most time-outs, so the connection should outlive it.
    "lift": (Phase(40, LTE), Phase(12, LTE, Mode.DROP)),
    "2g": (Phase(60, EDGE),),
    # Carrier NATs forget TCP after some minutes, cheap routers after one.
    "nat": (Phase(60, LTE._replace(idle_ms=60_000)),),
    # A proxy that ends every connection after half a minute.
    "proxy": (Phase(60, LTE._replace(life_ms=30_000)),),
}


def faster(profile: tuple[Phase, ...], by: float) -> tuple[Phase, ...]:
    """The same in less time: phases and time-outs are shorter; delays and rates stay."""
    return tuple(
        Phase(
            phase.seconds / by,
            phase.spec._replace(life_ms=phase.spec.life_ms / by, idle_ms=phase.spec.idle_ms / by),
            phase.mode,
        )
        for phase in profile
    )


async def play(proxy: LinkProxy, source: str, target: str, profile: tuple[Phase, ...]) -> None:
    """Both ways of the link, until cancelled."""
    for phase in cycle(profile):
        proxy.apply(Fault(source, target, phase.mode, True, phase.spec))
        await asyncio.sleep(phase.seconds)
