"""What metrics and tracing cost: a node that has both beside one that has neither.

No message is followed in either: what is measured is the looking whether one is to be."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.deployment import one_idc, running
from benchmarks.generator import generator
from imcore.region.load import load_region
from imctl.target.places import free_port
from services.metrics.hot import Hot
from services.metrics.verbs import Verbs

RATE = 500.0
PAIRS = 100
ROUNDS = 2  # of each, in turn: what disturbs a run makes its figure only worse
CALLS = 200_000


async def _node_us(measures: bool, seconds: float) -> float:
    """CPU microseconds of the node for a message."""
    with tempfile.TemporaryDirectory(prefix="bench-metrics-") as name:
        folder = Path(name)
        one_idc(folder)
        path = folder / "region.yaml"
        document = yaml.safe_load(path.read_text())
        (idc,) = document["spec"]["idcs"]
        if measures:
            idc["endpoints"]["metrics"] = f"127.0.0.1:{free_port()}"
        else:
            document["spec"]["tracing"] = {"per_s": 0}
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        region = load_region(path)
        async with running(folder, region, plain=True) as processes:
            (node,) = processes.values()
            async with generator(folder, region, [("fra", "fra")] * PAIRS, False) as load:
                await load.run(RATE, 1.0)
                before = node.cpu_s()
                found = await load.run(RATE, seconds)
                used = node.cpu_s() - before
                await load.judged()
    messages: int = found["messages"]
    return used / max(1, messages) * 1e6


def _call_us() -> tuple[float, float]:
    """One request counted, one message counted among many conversations."""
    verbs, hot = Verbs(), Hot(random.Random(1))
    names = [f"d:u{n}:u{n + 1}" for n in range(5_000)]
    begin = time.perf_counter()
    for n in range(CALLS):
        verbs.done("send", n % 50 / 1000)
    counted = time.perf_counter()
    for n in range(CALLS):
        hot.messages(names[n * n % 5_000], 1)
    ended = time.perf_counter()
    return (counted - begin) / CALLS * 1e6, (ended - counted) / CALLS * 1e6


async def run(quick: bool) -> None:
    seconds = 4.0 if quick else 15.0
    rows: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for measures, row in rows.items():
            row.append(await _node_us(measures, seconds))
    request, message = _call_us()
    print(f"counting: {request:.2f} us a request and role, {message:.2f} us a message in the top k")
    print(
        f"CPU of a node at {RATE:.0f} messages/s, us a message (1 IDC, plain), metrics and tracing"
    )
    for measures, label in ((False, "without"), (True, "with")):
        row = rows[measures]
        print(
            f"  {label:20}" + "".join(f"{value:8.0f}" for value in row) + f"   best {min(row):.0f}"
        )
    ratio = min(rows[True]) / min(rows[False])
    print(f"  with / without, best of {ROUNDS}: {ratio:.3f}")
