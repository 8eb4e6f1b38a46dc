"""Deliveries per CPU-second of a huge group: plain, merged, packed: `python -m benchmarks.groups`.

A delivery is one message at one connected member. Gateway and state in one process, over real
sockets, plain TCP; the members' connections are another process's, so its CPU is not counted.
Plain: each message is one push. Merged: MERGED of them are, as those of a window in a hot group.
Packed: these pushes are compressed too. In turn, twice, in one process with the same connections.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import subprocess
import sys
import time
from dataclasses import replace
from typing import NamedTuple

import uvloop

from benchmarks import text
from benchmarks.gateway import CONTENT, KEYS, UNLIMITED, listen
from imcore.convert import key_pb
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey
from services.node.process import COLLECT
from services.ports import Audience
from services.state.reached import ReachedGroups
from services.state.testing import Front

GROUP = "g:huge"
MERGED = 10
SILENT = replace(UNLIMITED, idle_ms=3_600_000)  # members who listen only
ROUNDS = 2


def _entry(front: Front, number: int) -> pb.Entry:
    """As large as one that im builds: client key, place and MAC beside the content."""
    origin, rng = pb.Origin(idc="fra", incarnation=1), random.Random(number)
    entry = pb.Entry(seq=number, hlc=number, origin=origin)
    placed = entry.message.placed
    placed.key.CopyFrom(key_pb(ClientKey("r0", "phone", "outbox-of-it", GROUP, number)))
    placed.content_hash, placed.mac = rng.randbytes(32), rng.randbytes(16)
    placed.place.hlc, placed.place.seq = number, number
    placed.place.origin.CopyFrom(origin)
    entry.message.content = text.said(rng, len(CONTENT))
    return entry


class Cost(NamedTuple):
    """Of a delivery."""

    cpu_s: float
    bytes: float


async def _deliver(
    front: Front, audience: Audience, first: int, pushes: int, each: int, packed: bool
) -> Cost:
    """Raises SystemExit when one was dropped."""
    [gateway] = front.gateways
    for record in front.state._table:
        record.unpacks = packed  # as if all had said so, or nobody
    front.state._reached = ReachedGroups(front.state._table)
    number, cpu, size = first, 0.0, 0
    front.state.reached(audience)
    for _ in range(pushes):
        entries = [_entry(front, number + n) for n in range(each)]
        number += each
        writes = gateway.counters.writes
        begin = time.process_time()
        front.state.push_group(audience, entries, {front.im.origin: number - 1}, 0, each > 1)
        while gateway.counters.writes < writes + len(audience.uids):  # noqa: ASYNC110 - it is counted
            await asyncio.sleep(0.02)  # between slices nothing is done
        cpu += time.process_time() - begin
        size += len(gateway._framed[1])
        for record in front.state._table:
            record.owed.clear()  # as if it had been acked: else all are signalled besides
        await asyncio.sleep(len(audience.uids) / 20_000)  # the readers share the machine
    if gateway.counters.dropped:
        raise SystemExit(f"{gateway.counters.dropped} pushes were dropped: the readers are late")
    return Cost(cpu / (pushes * each * len(audience.uids)), size / (pushes * each))


async def measure(members: int, pushes: int) -> None:
    gc.freeze()
    gc.set_threshold(*COLLECT)
    async with Front(KEYS, None, limits=SILENT) as front:
        [gateway] = front.gateways
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.groups", "--listen", str(gateway.port),
            "--members", str(members), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        if await child.stdout.readline() != b"ready\n":
            raise SystemExit("the members could not connect")
        audience = Audience(GROUP, tuple(sorted(f"r{number}" for number in range(members))))
        assert front.state.reached(audience) == members
        number = 1
        found: list[list[Cost]] = [[], [], []]
        for _ in range(ROUNDS):
            for mode, (each, packed) in enumerate(((1, False), (MERGED, False), (MERGED, True))):
                cost = await _deliver(front, audience, number, pushes, each, packed)
                found[mode].append(cost)
                number += pushes * each
        child.stdin.write(b"over\n")
        await child.wait()
        print(f"group of {members} connected members, {pushes} pushes a round")
        plain = min(found[0])
        for name, costs in zip(("plain", "merged", "packed"), found, strict=True):
            best = min(costs)
            runs = ", ".join(f"{1 / cost.cpu_s:,.0f}" for cost in costs)
            print(
                f"  {name:6} {1 / best.cpu_s:12,.0f} deliveries a CPU-second (runs: {runs}), "
                f"{plain.cpu_s / best.cpu_s:.1f} times as many; of one: {best.cpu_s * 1e6:.2f} us, "
                f"{best.bytes:.0f} bytes",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=10_000)
    parser.add_argument("--pushes", type=int, default=20)
    parser.add_argument("--listen", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.listen:
        uvloop.run(listen(options.listen, options.members))
    else:
        uvloop.run(measure(options.members, options.pushes))


if __name__ == "__main__":
    main()
