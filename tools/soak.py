"""``python -m tools.soak``: chat for 20 minutes while the memory of every process is looked at.

Memory is what a process has written itself (``RssAnon``): pages of the KV's file, which the system
takes back when it wants them, are not counted. A process is flat when the median of its last
quarter is no higher than that of its second one, give or take what caches and the allocator do; the
first quarter fills them. The plot and the figures are in build/soak, with what `imctl load` said.
Exit status 1: one grew, or the load found a broken promise or was broken off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import uvloop

from imctl.report.charts import Axis, Line, chart
from imctl.report.page import document, table
from imctl.testing.lab import Lab

OUT = Path("build/soak")
EVERY_S = 5.0
GROWTH_SHARE = 0.10  # of the second quarter's median
GROWTH_MIB = 8.0
LEAST_SAMPLES = 16

Points = Sequence[tuple[float, float]]  # seconds, MiB


class Growth(NamedTuple):
    process: str
    before_mib: float  # median of the second quarter
    after_mib: float  # of the last one

    @property
    def is_flat(self) -> bool:
        return self.after_mib <= self.before_mib * (1 + GROWTH_SHARE) + GROWTH_MIB


def growth(process: str, points: Points) -> Growth:
    """Raises ValueError for fewer samples than say something."""
    if len(points) < LEAST_SAMPLES:
        raise ValueError(f"{process}: expected {LEAST_SAMPLES} samples, got {len(points)}")
    values = [mib for _, mib in points]
    quarter = len(values) // 4
    before = statistics.median(values[quarter : 2 * quarter])
    return Growth(process, before, statistics.median(values[-quarter:]))


def page(samples: Mapping[str, Points], found: Sequence[Growth], verdict: str) -> str:
    seconds = max(at for points in samples.values() for at, _ in points)
    axis = Axis(seconds, (), ())
    parts = [
        f"<h2>{escape(name)}</h2>" + chart(axis, [Line(name, "c1", points)], "MiB")
        for name, points in samples.items()
    ]
    rows = [
        (each.process, round(each.before_mib, 1), round(each.after_mib, 1),
         "flat" if each.is_flat else "grew")
        for each in found
    ]  # fmt: skip
    head = ("process", "second quarter, MiB", "last quarter, MiB", "")
    ok = all(each.is_flat for each in found)
    return document("Soak", verdict, ok, table("Memory", head, rows) + "".join(parts))


def anonymous_mib(pid: int) -> float:
    """Raises OSError when the process has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"process {pid} has ended")


async def soak(minutes: float, rate: float, out: Path) -> tuple[list[Growth], int]:
    """Also writes ``soak.html`` and ``soak.json`` into ``out``. Second: the load's exit status."""
    samples: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        async with Lab.up(Path(name)) as lab:
            pids = {unit.name: unit.pid for unit in lab.target.units()}
            command = [sys.executable, "-m", "imctl", "load", "--data", str(lab.target.data)]
            command += ["--rate", f"{rate:g}", "--group-rate", f"{rate / 20:g}"]
            command += ["--seconds", f"{60 * minutes:g}"]
            with (out / "load.txt").open("w") as log:
                load = await asyncio.create_subprocess_exec(
                    *command, stdout=log, stderr=subprocess.STDOUT
                )
                try:
                    begun = time.monotonic()
                    while load.returncode is None and time.monotonic() < begun + 60 * minutes:
                        at = time.monotonic() - begun
                        for process, pid in pids.items():
                            samples.setdefault(process, []).append((at, anonymous_mib(pid)))
                        await asyncio.sleep(EVERY_S)
                    status = await load.wait()
                finally:
                    if load.returncode is None:
                        load.terminate()
                        await load.wait()
    found = [growth(process, points) for process, points in samples.items()]
    grew = [each.process for each in found if not each.is_flat]
    what = f"{', '.join(grew)} grew" if grew else "every process stayed flat"
    last = ["", *(out / "load.txt").read_text().splitlines()][-1]
    held = "every promise held" if status == 0 else last
    verdict = f"{minutes:g} minutes at {rate:g} messages/s: {what}; {held}"
    (out / "soak.html").write_text(page(samples, found, verdict))
    (out / "soak.json").write_text(json.dumps({"verdict": verdict, "mib": samples}))
    print(verdict, flush=True)
    for each in found:
        print(f"  {each.process:10} {each.before_mib:7.1f} MiB, then {each.after_mib:7.1f} MiB")
    print(f"  {out / 'soak.html'}; load {os.getloadavg()[0]:.1f}", flush=True)
    return found, status


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=50.0, help="messages a second")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    found, status = uvloop.run(soak(options.minutes, options.rate, OUT))
    raise SystemExit(0 if status == 0 and all(each.is_flat for each in found) else 1)


if __name__ == "__main__":
    main()
