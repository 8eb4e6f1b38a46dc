"""``python -m services.sim``: runs seeds, side by side on all cores, and says what came of them.

Exit status 1 when a promise was broken: the seed, the promise and the end of its trace are printed,
and the whole trace is in a file. ``--from N --seeds 1`` runs that seed again, to the letter.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from imcore.sometimes import COUNTED, EXPECTED
from services.sim.run import SECONDS, Outcome, run_apart

TRACE_LINES = 60


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=8, help="how many [default: %(default)s]")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first one")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="begin new seeds for so long, however many"
    )
    parser.add_argument(
        "--until-broken", action="store_true", help="begin no new seed after a broken one"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of faults and load each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="side by side")
    parser.add_argument(
        "--counters",
        action="store_true",
        help="fail when an expected `sometimes` counter stays at zero",
    )
    parser.add_argument("--out", type=Path, default=Path("build/sim"), help="for traces")
    return parser.parse_args(arguments)


def _outcomes(options: argparse.Namespace) -> Iterator[Outcome]:
    """As they come."""
    until = time.monotonic() + options.minutes * 60
    seed, last = options.first, options.first + options.seeds
    waiting: set[Future[Outcome]] = set()
    ended = False
    # A fresh process a seed: what one has left behind cannot reach the next. It is forked from one
    # that has imported all and done nothing: to import takes 1.6 s, a tenth of a seed.
    context = get_context("forkserver")
    context.set_forkserver_preload(["services.sim.run"])
    with ProcessPoolExecutor(options.jobs, mp_context=context, max_tasks_per_child=1) as pool:
        while True:
            more = time.monotonic() < until if options.minutes else seed < last
            more = more and not ended
            while more and len(waiting) < options.jobs:
                waiting.add(pool.submit(run_apart, seed, options.seconds))
                seed += 1
                more = bool(options.minutes) or seed < last
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                ended |= options.until_broken and bool(future.result().violated)
                yield future.result()


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
    print(f"  the whole trace: {path}; again: make sim FROM={outcome.seed} SEEDS=1", flush=True)


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
    sometimes: Counter[str] = Counter()
    seeds, simulated_s, broken = 0, 0.0, []
    for outcome in _outcomes(options):
        _say(outcome, options.out)
        seeds += 1
        simulated_s += outcome.simulated_s
        faults.update(outcome.faults)
        sometimes.update(outcome.sometimes)
        if outcome.violated:
            broken.append(outcome.seed)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{seeds} seeds, {simulated_s / 3600:.2f} simulated hours in {minutes:.1f} minutes: "
        f"{simulated_s / 3600 / max(minutes, 1e-9):.3f} simulated hours a minute"
    )
    print(f"faults: {', '.join(f'{name} {n}' for name, n in sorted(faults.items()))}")
    print(f"sometimes: {', '.join(f'{name} {sometimes[name]}' for name in COUNTED)}")
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
