"""The highest rate at which one IDC answers in time: in one process, over plain TCP and over TLS,
and with its gateway in a process of its own, side by side.

Fsync before ack, every message acked to its sender and pushed to two devices. In time: p99 of ack
and of receipt under LIMIT_MS, counted from when a message was to be sent, and as much is acked as
is offered. The rate rises by half until a step fails three times, then the gap is halved. The rate
goes on rising until the node does not keep up any more: a busy machine spoils that figure least.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.deployment import Consumer, one_idc, running
from benchmarks.generator import Generator, generator

LIMIT_MS = 10.0
FLOOR_PER_S, AIM_PER_S = 5_000, 10_000  # durable messages, whatever the latency
ACHIEVED = 0.97  # of what is offered
START_PER_S = 400.0
LOWEST_PER_S = 50.0
NEAR = 1.1  # the search ends when the failed rate is this near
SUSTAINED_MS = 1000.0  # of receipt at p99; above it a queue grows, however fast the acks come
PAIRS = 100  # two connections each; a gateway takes 200 requests/s of one
TRIES = 3  # a step that fails may have been disturbed


class Step(NamedTuple):
    found: dict[str, Any]  # of the generator
    node_cpu_us: float  # a message, of all processes of the IDC
    gateway_cpu_us: float  # of that, the gateway's, where it is a process of its own
    load: float  # of the machine, 1 minute

    def has_kept_up(self) -> bool:
        found = self.found
        lost = found["unacked"] or found["unreceived"] or found["lost"]
        return not lost and found["achieved"] >= ACHIEVED * found["offered"]

    def is_sustained(self) -> bool:
        return self.has_kept_up() and self.found["receive"]["p99_ms"] < SUSTAINED_MS

    def is_in_time(self) -> bool:
        slowest = max(self.found["ack"]["p99_ms"], self.found["receive"]["p99_ms"])
        return self.has_kept_up() and slowest < LIMIT_MS


Parts = Sequence[Consumer]  # of an IDC: its node or core, and then its gateway if it is apart


class Found(NamedTuple):
    """The steps with the highest rate in time, and with the highest at which all was acked as fast
    as it came; None: there was none."""

    in_time: Step | None
    kept_up: Step | None


async def step(load: Generator, parts: Parts, rate: float, seconds: float) -> Step:
    before = [part.cpu_s() for part in parts]
    found = await load.run(rate, seconds)
    took = [part.cpu_s() - begun for part, begun in zip(parts, before, strict=True)]
    each = 1e6 / max(1, found["messages"])
    done = Step(found, sum(took) * each, sum(took[1:]) * each, os.getloadavg()[0])
    ack, receive = found["ack"], found["receive"]
    print(
        f"  offered {found['offered']:6.0f}/s  achieved {found['achieved']:6.0f}/s  "
        f"ack p50 {ack['p50_ms']:7.2f} p99 {ack['p99_ms']:8.2f} ms  "
        f"receipt p50 {receive['p50_ms']:7.2f} p99 {receive['p99_ms']:8.2f} ms  "
        f"node {done.node_cpu_us:4.0f} us/msg  load {done.load:.1f}"
        f"{'' if done.is_in_time() else '  too slow'}{found['lost']}",
        flush=True,
    )
    return done


async def search(load: Generator, node: Parts, seconds: float) -> Found:
    async def attempt(rate: float, good: Callable[[Step], bool] = Step.is_in_time) -> Step:
        for _ in range(TRIES):
            done = await step(load, node, rate, seconds)
            if good(done):
                break
        return done

    rate, best, most, failed = START_PER_S, None, None, 0.0
    while True:
        done = await attempt(rate, Step.has_kept_up if failed else Step.is_in_time)
        if not failed:
            best, failed = (done, 0.0) if done.is_in_time() else (best, rate)
        if not done.has_kept_up():
            break
        most, rate = done, rate * 1.5
    failed = failed or rate
    while best is None and failed / 2 >= LOWEST_PER_S:
        done = await attempt(failed / 2)
        best, failed = (done, failed) if done.is_in_time() else (None, failed / 2)
    while best is not None and failed / best.found["rate"] > NEAR:
        middle = (failed + best.found["rate"]) / 2
        done = await attempt(middle)
        best, failed = (done, failed) if done.is_in_time() else (best, middle)
    return Found(best, most)


async def climb(load: Generator, node: Parts, seconds: float) -> Step | None:
    """The fastest step that was sustained; the rate rises by half until one is not, and is
    halved before as long as none is. None: not even LOWEST_PER_S was."""
    rate, most = START_PER_S, None
    while True:
        for _ in range(TRIES):
            done = await step(load, node, rate, seconds)
            if done.is_sustained():
                break
        else:
            if most is not None or rate / 2 < LOWEST_PER_S:
                return most
            rate /= 2
            continue
        if rate < START_PER_S:
            return done
        most, rate = done, rate * 1.5


async def measure(plain: bool, seconds: float, apart: bool = False) -> Found:
    with tempfile.TemporaryDirectory(prefix="bench-throughput-") as name:
        folder = Path(name)
        region = one_idc(folder)
        async with (
            running(folder, region, plain, apart=apart) as processes,
            generator(folder, region, [("fra", "fra")] * PAIRS, not plain) as load,
        ):
            how = f"{'plain' if plain else 'TLS'}{', gateway apart' if apart else ''}"
            print(f"{how}, {2 * PAIRS} connections", flush=True)
            await load.run(START_PER_S / 2, 1.0)
            found = await search(load, list(processes.values()), seconds)
            print(f"  history: {await load.judged()}", flush=True)
    return found


def _line(name: str, best: Step | None) -> str:
    if best is None:
        return f"  {name:13} none on this machine now, from {LOWEST_PER_S:g}/s on"
    found = best.found
    apart = f" (of it the gateway {best.gateway_cpu_us:.0f})" if best.gateway_cpu_us else ""
    return (
        f"  {name:13} {found['achieved']:5.0f} msg/s, ack p99 {found['ack']['p99_ms']:.1f} ms, "
        f"receipt p99 {found['receive']['p99_ms']:.1f} ms, "
        f"node {best.node_cpu_us:.0f} us/msg{apart}, load {best.load:.1f}"
    )


def _ratio(what: str, one: Step | None, other: Step | None) -> str:
    if one is None or other is None:
        return f"  {what}: not known"
    rates = other.found["achieved"] / one.found["achieved"]
    return f"  {what}: rate {rates:.2f}, CPU {other.node_cpu_us / one.node_cpu_us:.2f}"


async def run(quick: bool) -> None:
    seconds = 2.0 if quick else 4.0
    found = {
        "plain": await measure(True, seconds),
        "TLS": await measure(False, seconds),
        "gateway apart": await measure(False, seconds, apart=True),
    }
    print(f"highest rate with p99 of ack and receipt under {LIMIT_MS:g} ms:")
    _compare({name: each.in_time for name, each in found.items()})
    bounds = f"floor {FLOOR_PER_S}/s, aim {AIM_PER_S}/s"
    print(f"highest rate that was kept up with, whatever the latency ({bounds}):")
    _compare({name: each.kept_up for name, each in found.items()})


def _compare(steps: dict[str, Step | None]) -> None:
    print(*(_line(name, step) for name, step in steps.items()), sep="\n")
    print(_ratio("TLS / plain", steps["plain"], steps["TLS"]))
    print(_ratio("gateway apart, TLS / TLS in one process", steps["TLS"], steps["gateway apart"]))
