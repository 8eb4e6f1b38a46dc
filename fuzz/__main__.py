"""``make fuzz``: every target in turn, each for its share of the time; one line a target.

    python -m fuzz [--minutes M] [--keep] [TARGET ...]

An input that breaks a target's promise is written to fuzz/corpus/TARGET, where it is a test from
then on, and the exit status is 1. What a run learns stays in build/fuzz for the next one;
``--keep`` also takes a few of the inputs that reached new code into fuzz/corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from fuzz.target import CORPUS, NAMES, Target, load

BUILD = Path("build") / "fuzz"
INPUT_S = 20  # wall time of one input, beyond which it hangs
RSS_MIB = 1_536
KEPT_MAX = 8  # inputs of a target that --keep takes
KEPT_BYTES_MAX = 1_024
_DONE = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_COVERAGE = re.compile(r"\bcov: (\d+)")


class Outcome(NamedTuple):
    target: str
    inputs: int
    seconds: float
    coverage: int  # edges of the instrumented bytecode that were reached
    found: list[Path]
    said: str  # the end of the log, when there is a finding or the engine itself failed
    failed: bool


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all targets together")
    parser.add_argument("--keep", action="store_true", help="commit what reaches new code")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    asked = parser.parse_args()
    names = asked.targets or list(NAMES)
    if unknown := [name for name in names if name not in NAMES]:
        parser.error(f"no target {unknown[0]}; expected some of {', '.join(NAMES)}")
    if asked.minutes <= 0:
        parser.error(f"--minutes {asked.minutes}: expected more than 0")
    if importlib.util.find_spec("atheris") is None:
        print("error: Atheris is not here: it has wheels for Linux on x86-64 only", file=sys.stderr)
        return 2
    seconds = max(1, int(asked.minutes * 60 / len(names)))
    print(f"{len(names)} targets, {seconds} s each; logs in {BUILD}", flush=True)
    print(f"{'target':<10} {'inputs':>9} {'inputs/s':>9} {'coverage':>9} {'findings':>9}")
    bad = False
    for name in names:
        outcome = _run(load(name), seconds)
        bad |= outcome.failed
        _show(outcome)
        if asked.keep and not outcome.failed:
            _keep(load(name))
    return 1 if bad else 0


def _show(outcome: Outcome) -> None:
    rate = outcome.inputs / max(outcome.seconds, 0.001)
    print(
        f"{outcome.target:<10} {outcome.inputs:>9,} {rate:>9,.0f} {outcome.coverage:>9,} "
        f"{len(outcome.found):>9}",
        flush=True,
    )
    if outcome.failed:
        print(outcome.said)
    for path in outcome.found:
        print(f"  {path}: now a test; `pytest tests/unit/test_fuzz_corpus.py -k {path.name}`")


def _run(target: Target, seconds: int) -> Outcome:
    """One target until the time is over or an input breaks its promise."""
    place = BUILD / target.name
    learnt, findings = place / "learnt", place / "findings"
    shutil.rmtree(findings, ignore_errors=True)
    for folder in (learnt, findings, CORPUS / target.name):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as temporary:
        seeds = Path(temporary)
        for number, seed in enumerate(target.seeds()):
            (seeds / f"seed-{number:02d}").write_bytes(seed)
        words = place / "words"  # the engine takes no empty one
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words or [b"\0"]))
        begun = time.monotonic()
        flags = [
            f"-max_total_time={seconds}", f"-max_len={target.bytes_max}", f"-dict={words}",
            f"-timeout={INPUT_S}", f"-rss_limit_mb={RSS_MIB}", f"-artifact_prefix={findings}/",
            "-print_final_stats=1", str(learnt), str(seeds), str(CORPUS / target.name),
        ]  # fmt: skip
        log = _engine(target, flags, place / "log", seconds)
        spent = time.monotonic() - begun
    found = [_made_a_test(target, path) for path in sorted(findings.iterdir())]
    executed, coverage = _DONE.findall(log), _COVERAGE.findall(log)
    return Outcome(
        target.name,
        int(executed[-1]) if executed else 0,
        spent,
        int(coverage[-1]) if coverage else 0,
        found,
        _reason(log),
        bool(found) or not executed,
    )


def _engine(target: Target, flags: list[str], log: Path, seconds: int) -> str:
    """What the engine printed. Its exit status says nothing that the findings do not."""
    command = [sys.executable, "-m", "fuzz.engine", target.name, *flags]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            process.wait(seconds + 4 * INPUT_S)
        except subprocess.TimeoutExpired:
            print(f"{target.name}: the engine did not end in time", flush=True)
        finally:
            process.kill()
            process.wait()
    return log.read_text(errors="replace")


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{each:02x}" for each in word)


def _reason(log: str) -> str:
    """From Python's own words on, or the last lines."""
    lines = [line for line in log.splitlines() if not line.startswith(("INFO", "#", "\tNEW"))]
    at = next((n for n, line in enumerate(lines) if "Uncaught Python exception" in line), None)
    shown = lines[-25:] if at is None else lines[at : at + 40]
    return "\n".join(f"  {line[:160]}" for line in shown)


def _made_a_test(target: Target, path: Path) -> Path:
    data = path.read_bytes()
    fresh = CORPUS / target.name / f"found-{hashlib.blake2b(data, digest_size=5).hexdigest()}"
    fresh.write_bytes(data)
    return fresh.relative_to(Path.cwd()) if fresh.is_relative_to(Path.cwd()) else fresh


def _keep(target: Target) -> None:
    """Each input in the learnt ones reached something new when it came; a few of the small ones,
    evenly over their sizes."""
    learnt = (BUILD / target.name / "learnt").iterdir()
    chosen = sorted((p.stat().st_size, p) for p in learnt if p.stat().st_size <= KEPT_BYTES_MAX)
    for _, path in chosen[:: max(1, len(chosen) // KEPT_MAX)][:KEPT_MAX]:
        data = path.read_bytes()
        name = f"reach-{hashlib.blake2b(data, digest_size=5).hexdigest()}"
        (CORPUS / target.name / name).write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
