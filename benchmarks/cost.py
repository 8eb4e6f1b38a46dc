"""CPU microseconds of a node for a message, hop by hop: one IDC, and one of three.

The nodes run with the counting of `benchmarks.hops`. With three IDCs the cost is that of each
node for a message accepted in any of them, because all apply all.
"""

from __future__ import annotations

import asyncio
import json
import signal
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.deployment import Process, one_idc, running, three_idcs
from benchmarks.generator import generator
from benchmarks.hops import HOPS

IDLE_S = 2.0
ANSWER_S = 5.0
IDC = "fra"  # whose node is read


class Cost(NamedTuple):
    """Microseconds a message."""

    hops: dict[str, float]
    total: float
    idle_percent: float  # of a core, without clients


async def _snapshot(folder: Path, process: Process) -> dict[str, Any]:
    path = folder / f"hops-{IDC}.json"
    path.unlink(missing_ok=True)
    process.child.send_signal(signal.SIGUSR1)
    async with asyncio.timeout(ANSWER_S):
        while not path.exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.02)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


async def measure(idcs: int, rate: float, seconds: float, plain: bool) -> Cost:
    with tempfile.TemporaryDirectory(prefix="bench-cost-") as name:
        folder = Path(name)
        region = one_idc(folder) if idcs == 1 else three_idcs(folder)
        names = [idc.name for idc in region.spec.idcs]
        # Two of five pairs cross IDCs, as in the demo.
        pairs = [(names[n % idcs], names[(n + (n % 5 < 2)) % idcs]) for n in range(100)]
        async with running(folder, region, plain, hops=True) as processes:
            node = processes[IDC]
            first = await _snapshot(folder, node)
            await asyncio.sleep(IDLE_S)
            idle_ns = (await _snapshot(folder, node))["cpu_ns"] - first["cpu_ns"]
            async with generator(folder, region, pairs, not plain) as load:
                await load.run(rate, 1.0)
                before = await _snapshot(folder, node)
                found = await load.run(rate, seconds)
                after = await _snapshot(folder, node)
                print(f"  {idcs} IDC: {await load.judged()}", flush=True)
    messages = max(1, found["messages"])
    hops = {
        hop: (ns - before["hops"][hop][0]) / messages / 1000
        for hop, (ns, _) in after["hops"].items()
    }
    total = (after["cpu_ns"] - before["cpu_ns"]) / messages / 1000
    return Cost(hops, total, idle_ns / IDLE_S / 1e7)


async def run(quick: bool) -> None:
    seconds = 3.0 if quick else 8.0
    columns = {
        "1 IDC, plain, 500/s": await measure(1, 500, seconds, True),
        "1 IDC, TLS, 500/s": await measure(1, 500, seconds, False),
        "1 of 3 IDCs, TLS, 300/s": await measure(3, 300, seconds, False),
    }
    print("CPU of a node, us a message")
    print(f"  {'':30}" + "".join(f"{name:>26}" for name in columns))
    for hop in dict.fromkeys(hop for hop, _, _ in HOPS):
        print(f"  {hop:30}" + "".join(f"{cost.hops[hop]:26.1f}" for cost in columns.values()))
    rest = [cost.total - sum(cost.hops.values()) for cost in columns.values()]
    print(f"  {'rest: loop, sockets, TLS, gRPC':30}" + "".join(f"{value:26.1f}" for value in rest))
    print(f"  {'all':30}" + "".join(f"{cost.total:26.1f}" for cost in columns.values()))
    print(
        f"  {'idle, % of a core':30}"
        + "".join(f"{cost.idle_percent:26.1f}" for cost in columns.values())
    )
