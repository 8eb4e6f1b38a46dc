"""Simulate whole deployments in virtual time with faults, one per seed, on all cores.

Exit status 1 if a promise was broken: the seed, the promise and the end of its trace are printed,
and the whole trace is written to a file. ``--from N --seeds 1`` repeats that seed exactly.
``--from commit`` derives the first seed from the commit: new seeds for each commit, and the same
ones for everyone who has that commit. The last line says
which seeds were clean without a gap and how to continue, so that many can be spread over nights.
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
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import cast

from imcore.sometimes import EXPECTED
from services.sim.apart import INTERRUPTED, outcomes
from services.sim.run import FIXED, SECONDS, Outcome, run_apart

SEEDS = 8
TRACE_LINES = 60
COMMIT = "commit"


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.sim", description=__doc__)
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"number of seeds [default: {SEEDS}; with --minutes as many as fit]",
    )
    parser.add_argument(
        "--from", type=first_seed, default=1, dest="first", metavar=f"N|{COMMIT}",
        help="first seed, or `commit`: derived from the checked-out commit [default: 1]",
    )  # fmt: skip
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="start new seeds for this long",
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
        "--fixed", action="store_true",
        help=f"the fixed set: seeds {FIXED.start} to {FIXED.stop - 1}, with --counters",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/sim"),
        metavar="DIR",
        help="where to write traces [default: %(default)s]",
    )
    options = parser.parse_args(arguments)
    if options.fixed:
        options.first, options.seeds, options.counters = FIXED.start, len(FIXED), True
    return options


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
    for seed in itertools.islice(itertools.count(options.first), _wanted(options)):
        over = bool(options.minutes) and time.monotonic() >= until
        if over or (options.until_broken and broken):
            return
        yield seed


def _wanted(options: argparse.Namespace) -> int | None:
    """How many seeds; None: as many as fit."""
    if options.seeds is None and not options.minutes:
        return SEEDS
    return cast("int | None", options.seeds)


def clean_range(first: int, clean: Collection[int], wanted: int | None) -> str:
    """Which seeds were clean without a gap, and how to go on behind them."""
    count = next(n for n in itertools.count() if first + n not in clean)
    said = f"clean: seeds {first} to {first + count - 1}" if count else "clean: none"
    if wanted is None:
        return f"{said}; go on: make sim FROM={first + count}"
    left = wanted - count
    return f"{said}; go on: make sim FROM={first + count} SEEDS={left}" if left else said


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
    simulated_s = 0.0
    broken: list[int] = []
    clean: set[int] = set()
    stopped = False
    try:
        for outcome in outcomes(run, _seeds(options, broken), options.jobs):
            _say(outcome, options.out)
            simulated_s += outcome.simulated_s
            faults.update(outcome.faults)
            doings.update(outcome.doings)
            sometimes.update(outcome.sometimes)
            if outcome.violated:
                broken.append(outcome.seed)
            else:
                clean.add(outcome.seed)
    except KeyboardInterrupt:
        stopped = True
    minutes = (time.monotonic() - began) / 60
    print(
        f"{len(clean) + len(broken)} seeds from {options.first}, {simulated_s / 3600:.2f} "
        f"simulated hours in {minutes:.1f} minutes: "
        f"{simulated_s / 3600 / max(minutes, 1e-9):.3f} simulated hours a minute"
    )
    print(f"faults: {', '.join(f'{name} {n}' for name, n in sorted(faults.items()))}")
    print(f"other operations: {', '.join(f'{name} {n}' for name, n in sorted(doings.items()))}")
    print(f"sometimes: {', '.join(f'{name} {sometimes[name]}' for name in EXPECTED)}")
    never = [name for name in EXPECTED if not sometimes[name]] if options.counters else []
    if never:
        print(f"never happened: {', '.join(never)}")
    if broken:
        print(f"broken: seeds {', '.join(map(str, sorted(broken)))}")
    print(clean_range(options.first, clean, _wanted(options)))
    if stopped:
        return INTERRUPTED
    return 1 if never or broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
