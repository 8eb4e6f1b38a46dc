"""Embedded and real engines side by side in one run: latency at a fixed rate, the highest rate that
is sustained, replication lag, CPU time.

Both are deployments as `imctl up` makes them, with TLS: one IDC, then three behind the link proxy.
They run one after the other and in turn (embedded, real, embedded, real), so that what else the
machine does falls on both. Both put a message on disk before its ack: the embedded log by fsync,
the single broker of an IDC by a flush of each record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lag, table, throughput
from benchmarks.deployment import Deployed, Failed, deployed, one_idc, three_idcs
from benchmarks.generator import Generator, generator
from imctl.engines import binaries
from imctl.target import engines as wanted

RATE_PER_S = 1000.0
ROUNDS = 2
SETTLING = 10  # runs of a second before three IDCs are measured, at most
SETTLED_MS = 100.0
ENGINES = (wanted.KAFKA, wanted.TIKV, wanted.ETCD)
EMBEDDED, REAL = "embedded", "Kafka, mock*, etcd"
MOCK = (
    "* The KV is a real PD with the TiKV-protocol mock, which proves nothing of TiKV's own speed; "
    "log, mirror and registry are the real engines, one broker and one etcd an IDC."
)


class _Cpu:
    """CPU time of nodes and engines since it was made."""

    def __init__(self, of: Deployed) -> None:
        self._of = of
        self._nodes, self._engines = of.nodes.cpu_s(), of.engines.cpu_s()

    def figures(self, what: str, messages: int) -> dict[str, float]:
        nodes = self._of.nodes.cpu_s() - self._nodes
        engines = self._of.engines.cpu_s() - self._engines
        each = 1e6 / max(1, messages)
        return {
            f"{what}: CPU of nodes, us/msg": nodes * each,
            f"{what}: CPU of engines, us/msg": engines * each,
            f"{what}: CPU of both, us/msg": (nodes + engines) * each,
        }


async def at_rate(load: Generator, of: Deployed, seconds: float) -> dict[str, float]:
    """What a fixed rate finds, whether it is sustained or not: then acked/s says so."""
    cpu = _Cpu(of)
    found = await load.run(RATE_PER_S, seconds)
    what = f"{RATE_PER_S:g}/s"
    return fixed(what, found) | cpu.figures(what, found["messages"])


def fixed(what: str, found: dict[str, Any]) -> dict[str, float]:
    """Latencies are of what was answered: without one there are none."""
    figures = {f"{what}: offered/s": found["offered"], f"{what}: acked/s": found["achieved"]}
    answered = {
        "receipt": ("receive", found["messages"] - found["unreceived"]),
        "ack": ("ack", found["messages"] - found["unacked"]),
    }
    for name, (key, count) in answered.items():
        if count:
            figures[f"{what}: {name} p50, ms"] = found[key]["p50_ms"]
            figures[f"{what}: {name} p99, ms"] = found[key]["p99_ms"]
    return figures


async def one(engines: Sequence[str], quick: bool) -> dict[str, float]:
    """Figures of one IDC."""
    seconds = 2.0 if quick else 4.0
    with tempfile.TemporaryDirectory(prefix="bench-real-") as name:
        region = one_idc(Path(name))
        pairs = [(region.spec.idcs[0].name,) * 2] * throughput.PAIRS
        async with (
            deployed(Path(name), engines) as of,
            generator(of.data, of.region, pairs, tls=True) as load,
        ):
            await load.run(throughput.START_PER_S / 2, 1.0)
            figures = await at_rate(load, of, 2 * seconds)
            most = await throughput.climb(load, [of.nodes], seconds)
            print(f"  history: {await load.judged()}", flush=True)
    if most is not None:
        figures["sustained: acked/s"] = most.found["achieved"]
    return figures


async def _settled(load: Generator, of: Deployed) -> None:
    """What a MirrorMaker takes to begin is no lag of its: wait until a second's messages come as
    soon as those of the second before. One that stays slow is measured all the same."""
    before = 0.0
    for _ in range(SETTLING):
        lags = lag.beyond_link(await load.run(lag.RATE_PER_S, 1.0), of.region).values()
        slowest = max((p50 for p50, _ in lags), default=0.0)
        if 0 < slowest < SETTLED_MS or before * 0.9 < slowest <= before:
            return
        before = slowest
    print(f"  the lag has not settled in {SETTLING} runs of a second", flush=True)


async def three(engines: Sequence[str], quick: bool) -> dict[str, float]:
    """Figures of three IDCs."""
    with tempfile.TemporaryDirectory(prefix="bench-real-") as name:
        region = three_idcs(Path(name))
        async with (
            deployed(Path(name), engines) as of,
            generator(of.data, of.region, lag.pairs_of(region), tls=True) as load,
        ):
            await _settled(load, of)
            cpu = _Cpu(of)
            found = await load.run(lag.RATE_PER_S, 4.0 if quick else 12.0)
            used = cpu.figures(f"3 IDCs, {lag.RATE_PER_S:g}/s", found["messages"])
            print(f"  history: {await load.judged()}", flush=True)
    figures: dict[str, float] = {}
    for way, (p50, p99) in lag.beyond_link(found, region).items():
        figures |= {f"lag {way}: p50, ms": p50, f"lag {way}: p99, ms": p99}
    return figures | used


async def run(quick: bool) -> None:
    """Raises Failed."""
    if lacking := binaries.missing(wanted.programs(ENGINES)):
        raise Failed(lacking)
    columns: dict[str, list[dict[str, float]]] = {EMBEDDED: [], REAL: []}
    sides: dict[str, Sequence[str]] = {EMBEDDED: (), REAL: ENGINES}
    for round_ in range(ROUNDS):
        for column, engines in sides.items():
            print(f"{column}, run {round_ + 1} of {ROUNDS}", flush=True)
            figures = await one(engines, quick)
            columns[column].append(figures | await three(engines, quick))
    print(f"each run in turn; ratio of the best ones, {REAL} to {EMBEDDED}")
    print(*table.lines(columns), MOCK, sep="\n")
