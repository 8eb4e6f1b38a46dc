"""Replication lag beyond the link's delay: three IDCs behind the link proxy, clients in two.

The lag of a message is when the other user's device, in another IDC, has it, less when its sender
has the ack, less the link's one-way delay. What is left: the mirror's pace, the copy's fsync, the
fold, the push; and the link's jitter and repeats of what it loses, which the region file sets too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.deployment import running, three_idcs
from benchmarks.generator import generator
from imcore.region.model import Region

PAIRS = 40
RATE_PER_S = 100.0


def pairs_of(region: Region) -> list[tuple[str, str]]:
    """Each pair's users are in two IDCs."""
    names = [idc.name for idc in region.spec.idcs]
    return [(names[n % 3], names[(n + 1) % 3]) for n in range(PAIRS)]


def beyond_link(found: dict[str, Any], region: Region) -> dict[str, tuple[float, float]]:
    """p50 and p99 in ms by direction, less the link's delay."""
    delays = {frozenset(link.between): link.delay_ms for link in region.spec.links}
    lags = {}
    for way, (p50, p99) in sorted(found["after_ack_ms"].items()):
        delay = delays[frozenset(way.split("-"))]
        lags[way] = (p50 - delay, p99 - delay)
    return lags


async def run(quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-lag-") as name:
        folder = Path(name)
        region = three_idcs(folder)
        async with (
            running(folder, region, plain=False),
            generator(folder, region, pairs_of(region), tls=True) as load,
        ):
            await load.run(RATE_PER_S, 1.0)
            found = await load.run(RATE_PER_S, 4.0 if quick else 12.0)
            print(f"  history: {await load.judged()}", flush=True)
    print(f"replication lag at {found['offered']:.0f} msg/s, beyond the link's delay")
    for way, (p50, p99) in beyond_link(found, region).items():
        link = found["after_ack_ms"][way][0] - p50
        print(f"  {way}: link {link:.0f} ms, lag beyond it p50 {p50:.1f} ms, p99 {p99:.1f} ms")
