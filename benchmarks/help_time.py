"""How long `imctl --help` takes."""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 10
AIM_S = 0.2


def _one(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - begin
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


async def run(quick: bool) -> None:
    command = [str(Path(sys.executable).with_name("imctl")), "--help"]
    await asyncio.to_thread(_one, command)
    took = [await asyncio.to_thread(_one, command) for _ in range(RUNS)]
    walls, cpus = zip(*took, strict=True)
    print(
        f"imctl --help: {min(walls):.3f} s at best, median {statistics.median(walls):.3f} s, "
        f"CPU {statistics.median(cpus):.3f} s (aim {AIM_S:g} s)"
    )
