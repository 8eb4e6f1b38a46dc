"""Simulate whole deployments in virtual time with faults, one per seed, on all cores.

Exit status 1 if a promise was broken: the seed, the promise and the end of its trace are printed,
and the whole trace is written to a file. ``--from N --seeds 1`` repeats that seed exactly.
``--from commit`` derives the first seed from the commit: new seeds for each commit, and the same
ones for everyone who has that commit.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from imcore.sometimes import EXPECTED
from services.sim.apart import outcomes
from services.sim.run import SECONDS, Outcome, run_apart

TRACE_LINES = 60
COMMIT = "commit"


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.sim", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=8, metavar="N", help="number of seeds [default: %(default)s]"
    )
    parser.add_argument(
        "--from", type=first_seed, default=1, dest="first", metavar=f"N|{COMMIT}",
        help="first seed, or `commit`: derived from the checked-out commit [default: 1]",
    )  # fmt: skip
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="start new seeds for this long, instead of --seeds",
    )
    parser.add_argument(
        "--until-broken", action="store_true", help="stop starting seeds after a broken one"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        help="simulated seconds of faults and load per seed [default: %(default)s]",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="seeds in parallel [default: one per core]",
    )
    parser.add_argument(
        "--counters",
        action="store_true",
        help="fail if an expected `sometimes` counter stays at zero",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/sim"),
        metavar="DIR",
        help="where to write traces [default: %(default)s]",
    )
    return parser.parse_args(arguments)


def first_seed(said: str) -> int:
    """The number, or by the commit: its first seven digits as a number, times ten thousand, so that
    neighbours share no seeds. Without a checkout the clock chooses. Raises ValueError."""
    if said != COMMIT:
        return int(said)
    commit = _commit()
    return int(commit[:7], 16) * 10_000 if commit else int(time.time()) * 10_000


def _commit() -> str:
    """Empty where it is not known."""
    git = shutil.which("git")
    if git is None:
        return ""
    asked = [git, "rev-parse", "--verify", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def _seeds(options: argparse.Namespace, broken: Sequence[int]) -> Iterator[int]:
    until = time.monotonic() + options.minutes * 60
    every = itertools.count(options.first)
    for seed in every if options.minutes else itertools.islice(every, options.seeds):
        over = bool(options.minutes) and time.monotonic() >= until
        if over or (options.until_broken and broken):
            return
        yield seed


def _say(outcome: Outcome, out: Path) -> None:
    bad = "BROKEN" if outcome.violated else "ok"
    faults = sum(outcome.faults.values())
    print(
        f"seed {outcome.seed}: {bad}; {outcome.operations} operations, {faults} faults in "
        f"{outcome.simulated_s:.0f} s ({outcome.real_s:.0f} s real); trace {outcome.digest}",
        flush=True,
    )
    if not outcome.violated:
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"trace-{outcome.seed}.txt"
    path.write_text("\n".join(outcome.trace) + "\n")
    for sentence in outcome.violated:
        print(f"  violated: {sentence}")
    for line in shortened(outcome.trace):
        print(f"    {line[:200]}")
    print(f"  whole trace: {path}; to repeat: make sim FROM={outcome.seed} SEEDS=1", flush=True)


def shortened(trace: Sequence[str]) -> list[str]:
    """Faults and what the service said of itself; not what every client saw."""
    told = [
        line
        for line in trace
        if " history " not in line and " im.audit " not in line and " im.sdk " not in line
    ]
    kept = [
        line
        for line in told
        if " fault " in line or " WARNING " in line or " ERROR " in line or " operator " in line
    ]
    return kept[-TRACE_LINES:]


def main(arguments: Sequence[str]) -> int:
    options = _arguments(arguments)
    began = time.monotonic()
    faults: Counter[str] = Counter()
    doings: Counter[str] = Counter()
    sometimes: Counter[str] = Counter()
    run = functools.partial(run_apart, seconds=options.seconds)
    seeds, simulated_s = 0, 0.0
    broken: list[int] = []
    for outcome in outcomes(run, _seeds(options, broken), options.jobs):
        _say(outcome, options.out)
        seeds += 1
        simulated_s += outcome.simulated_s
        faults.update(outcome.faults)
        doings.update(outcome.doings)
        sometimes.update(outcome.sometimes)
        if outcome.violated:
            broken.append(outcome.seed)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{seeds} seeds from {options.first}, {simulated_s / 3600:.2f} simulated hours in "
        f"{minutes:.1f} minutes: "
        f"{simulated_s / 3600 / max(minutes, 1e-9):.3f} simulated hours a minute"
    )
    print(f"faults: {', '.join(f'{name} {n}' for name, n in sorted(faults.items()))}")
    print(f"other operations: {', '.join(f'{name} {n}' for name, n in sorted(doings.items()))}")
    print(f"sometimes: {', '.join(f'{name} {sometimes[name]}' for name in EXPECTED)}")
    never = [name for name in EXPECTED if not sometimes[name]]
    if options.counters and never:
        print(f"never happened: {', '.join(never)}")
        return 1
    if broken:
        print(f"broken: seeds {', '.join(map(str, sorted(broken)))}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
