"""The figures of docs/benchmarks.md: `python -m benchmarks [--quick] [NAME ...]`; `make bench`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from benchmarks import (
    arrivals,
    cost,
    engines,
    help_time,
    lag,
    metrics,
    overload,
    peers,
    pulls,
    real,
    reconcile,
    routing,
    throughput,
)
from benchmarks.deployment import Failed, one_idc
from imcore.errors import ImError

NOISE_SLEEPS = 1_000


async def _module(name: str, *arguments: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"benchmarks.{name}", *arguments
    )
    if await child.wait():
        raise Failed(f"benchmarks.{name} failed")


async def _gateway(quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as name:
        one_idc(Path(name))
        messages = "5000" if quick else "20000"
        await _module("gateway", "--pki", f"{name}/pki", "--messages", messages)


async def _groups(quick: bool) -> None:
    await _module("groups", "--members", "2000" if quick else "10000")


async def _footprint(quick: bool) -> None:
    await _module("footprint", "--connections", "1000" if quick else "18000")


async def _storm(quick: bool) -> None:
    await _module("storm", "--clients", "1000" if quick else "10000")


async def _engines(quick: bool) -> None:
    await _module("engines")


BENCHMARKS: dict[str, Callable[[bool], Awaitable[None]]] = {
    "throughput": throughput.run,
    "cost": cost.run,
    "lag": lag.run,
    "gateway": _gateway,
    "groups": _groups,
    "footprint": _footprint,
    "arrivals": arrivals.run,
    "storm": _storm,
    "overload": overload.run,
    "engines": _engines,
    "help": help_time.run,
    "metrics": metrics.run,
    "pulls": pulls.run,
    "routing": routing.run,
    "peers": peers.run,
    "real": real.run,
    "operator": reconcile.run,
}


async def _lateness_ms() -> float:
    """p99 of how late a sleep of 1 ms ends in this process, which does nothing else: what other
    programs on the machine add to every latency, several times over for a message."""
    late: list[float] = []
    for _ in range(NOISE_SLEEPS):
        begin = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append((time.perf_counter() - begin) * 1000 - 1)
    return sorted(late)[NOISE_SLEEPS * 99 // 100]


async def _run(names: list[str], quick: bool) -> None:
    for name in names:
        load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
        late = await _lateness_ms()
        with tempfile.TemporaryDirectory(prefix="bench-disk-") as folder:
            disk = await asyncio.to_thread(engines.raw_fsyncs, Path(folder))
        print(
            f"\n== {name} (machine load {load} on {os.cpu_count()} CPUs; at p99 a timer is late by "
            f"{late:.1f} ms, and the disk alone takes {disk.p99_ms:.1f} ms for an fsync)",
            flush=True,
        )
        await BENCHMARKS[name](quick)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="shorter steps, rougher figures")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"expected one of {', '.join(BENCHMARKS)}, got {unknown[0]}")
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs")
    try:
        uvloop.run(_run(options.names or list(BENCHMARKS), options.quick))
    except (Failed, ImError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
