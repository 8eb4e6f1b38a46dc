"""Each planted bug must be found by the simulation within its stated number of seeds.

Each is put into a copy of the sources, and whole seeds are run there until a promise breaks. The
seeds that found one must be clean without it, or they would prove nothing. Writes the table of
docs/testing.md when all were run. Exit status 1 when a bug does not apply, is not found, or the
seeds are not clean without it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tools.mutations import ROOT, DoesNotApply, applied, copy_of, run_module
from tools.planted_bugs import PLANTED, Planted

FIRST = 1  # the first seed of each bug
SECONDS = 30.0  # of load and faults in each: half of what `make sim` runs, for there are many
SEED_MAX_S = 300.0  # a bug may make everything slow
PAGE = Path("docs/testing.md")
BEGIN, END = "<!-- planted: made by `make planted` -->", "<!-- planted: end -->"
_SEED = re.compile(r"seed (\d+): (ok|BROKEN)")
_VIOLATED = re.compile(r"  violated: (.*)")
_KIND = re.compile(r"[a-z_]+: ")
_PROMISE_MAX = 100


class Found(NamedTuple):
    """``seeds``: how many it took, or were run in vain. ``promise``: empty when none broke, else
    the first violation."""

    seeds: int
    promise: str
    seconds: float
    problem: str = ""


def read(said: str) -> tuple[int, str]:
    """Of the simulation's output: how many seeds it took to the first broken one, and a violation
    of it; or how many were run, and nothing."""
    broken: dict[int, list[str]] = {}
    seeds: list[int] = []
    for line in said.splitlines():
        if begin := _SEED.match(line):
            seeds.append(int(begin[1]))
        elif (violated := _VIOLATED.match(line)) and seeds:
            broken.setdefault(seeds[-1], []).append(violated[1])
    if not broken:
        return len(seeds), ""
    first = min(broken)  # seeds run side by side end in any order
    # What names its promise says more than that the run did not come to rest.
    named = [violated for violated in broken[first] if _KIND.match(violated)]
    return first - FIRST + 1, [*named, *broken[first]][0]


def run_seeds(root: Path, seeds: int, jobs: int) -> Found:
    began = time.monotonic()
    options = [
        "--from", str(FIRST), "--seeds", str(seeds), "--seconds", str(SECONDS),
        "--jobs", str(jobs), "--until-broken",
    ]  # fmt: skip
    try:
        status, said = run_module(
            root, ["services.sim", *options], seeds * SEED_MAX_S, bytecode=True
        )
    except subprocess.TimeoutExpired:
        return Found(seeds, "", time.monotonic() - began, "the seeds do not end")
    number, promise = read(said)
    # A simulation that ends otherwise than by a verdict has found nothing.
    problem = "" if status == (1 if promise else 0) else f"exit status {status}: {said[-800:]}"
    return Found(number, "" if problem else promise, time.monotonic() - began, problem)


def find(bug: Planted, copy: Path, number: int, jobs: int) -> Found:
    try:
        with applied(bug, copy, number):
            return run_seeds(copy, bug.seeds, jobs)
    except DoesNotApply as error:
        return Found(0, "", 0.0, f"does not apply: {error}")


def told(promise: str) -> str:
    """A violation as the table shows it: its beginning, in one line of Markdown."""
    text = " ".join(promise.replace("|", "/").split())
    return text if len(text) <= _PROMISE_MAX else text[: _PROMISE_MAX - 2] + " …"


def markdown(rows: Sequence[tuple[Planted, Found]]) -> str:
    lines = [
        "| planted bug | what it does | promise broken, as the run said it | seeds | within | s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for bug, found in rows:
        lines.append(
            f"| {bug.name} | {bug.how} | {told(found.promise)} | {found.seeds} | {bug.seeds} "
            f"| {found.seconds:.0f} |"
        )
    return "\n".join(lines)


def write_table(root: Path, rows: Sequence[tuple[Planted, Found]]) -> None:
    page = root / PAGE
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}")


def check(
    bugs: Sequence[Planted], root: Path, screen: Console, jobs: int
) -> list[tuple[Planted, Found]]:
    """Those that were found, when the same seeds are clean without them."""
    rows: list[tuple[Planted, Found]] = []
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="planted-") as folder,
        Progress(*columns, console=screen) as progress,
    ):
        copy = Path(folder)
        copy_of(root, copy)
        bar = progress.add_task("", total=len(bugs) + 1)
        for number, bug in enumerate(bugs):
            progress.update(bar, description=bug.name)
            found = find(bug, copy, number, jobs)
            progress.advance(bar)
            if found.promise:
                rows.append((bug, found))
                took = f"{found.seeds} of {bug.seeds} seeds, {found.seconds:.0f} s"
                word = f"{took}: {told(found.promise)}"
            else:
                word = f"NOT FOUND in {bug.seeds} seeds {found.problem}"
            screen.print(f"{bug.name}: {word}", markup=False, highlight=False)
        if rows:
            progress.update(bar, description="the same seeds without any bug")
            clean = run_seeds(copy, max(found.seeds for _, found in rows), jobs)
            progress.advance(bar)
            if clean.promise or clean.problem:
                said = f"the seeds are not clean without any bug: {clean.promise}{clean.problem}"
                screen.print(said, markup=False, highlight=False)
                return []
    return rows


def show(rows: Sequence[tuple[Planted, Found]], screen: Console) -> None:
    table = Table("planted bug", "promise broken", "seeds", "within", "s", box=None, pad_edge=False)
    for bug, found in rows:
        table.add_row(
            bug.name, told(found.promise), str(found.seeds), str(bug.seeds), f"{found.seconds:.0f}"
        )
    screen.print(table, markup=False, highlight=False)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.planted", description=__doc__)
    names = [bug.name for bug in PLANTED]
    parser.add_argument("--only", choices=names, help="one of them; the table stays as it is")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="side by side")
    options = parser.parse_args(arguments)
    only = options.only
    bugs = [bug for bug in PLANTED if only in (None, bug.name)]
    screen = Console(width=None if sys.stdout.isatty() else 200)
    rows = check(bugs, ROOT, screen, options.jobs)
    show(rows, screen)
    screen.print(f"{len(rows)} of {len(bugs)} planted bugs were found", highlight=False)
    if len(rows) < len(bugs):
        return 1
    if only is None:
        write_table(ROOT, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
