"""Whole seeds: the same trace whatever the process, and no promise broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.sim import run
from services.sim.run import SECONDS, run_seed
from services.sim.testing import Stage, play

ROOT = Path(__file__).parents[2]
SHORT_S = 6.0
SEED = 7
SPLIT_SEED = 1_000_005


def _run(hash_seed: int, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.sim", *options],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=1_200,
    )


@pytest.mark.parametrize(
    ("seed", "seconds"),
    [
        (SEED, SHORT_S),
        (10, 20.0),
        (SPLIT_SEED, SHORT_S),
        # Whole ones, of three IDCs and of two with a witness.
        pytest.param(10, SECONDS, marks=pytest.mark.nightly),
        pytest.param(11, SECONDS, marks=pytest.mark.nightly),
    ],
)
def test_a_seed_gives_the_same_trace_byte_for_byte(
    tmp_path: Path, seed: int, seconds: float
) -> None:
    """In the second one an IDC votes against two others at once; in the third one gateways and
    route instances are processes of their own."""

    def digest(hash_seed: int) -> str:
        done = _run(
            hash_seed, "--from", str(seed), "--seeds", "1", "--seconds", str(seconds), "--jobs",
            "1", "--out", str(tmp_path),
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()[0].rpartition("trace ")[2]

    first, second = digest(1), digest(2)
    assert len(first) == 32
    assert first == second


def test_what_an_idc_says_of_itself_is_not_of_the_real_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow link takes longer for more bytes: a number with another count of digits, and the
    seed was another world."""
    said: list[list[str]] = []

    async def script(stage: Stage) -> None:
        nodes = [machine.node for machine in stage.world.machines.values()]
        said.append([json.dumps(node.status.as_dict()) for node in nodes if node is not None])

    for number, pid in enumerate((7, 31_234)):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        play(tmp_path / str(number), script)
    first, second = said
    assert len(first) == 3
    assert first == second


def test_another_seed_is_another_world() -> None:
    one, other = run_seed(SEED, 1.0), run_seed(SEED + 1, 1.0)
    assert not one.violated and not other.violated
    assert one.trace != other.trace
    assert any(" history Unread " in line for line in one.trace)  # or nothing was judged of them


def test_a_whole_seed_goes_on_until_it_has_had_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SECONDS", 1.0)
    monkeypatch.setattr(run, "OPERATIONS_MIN", 100)
    monkeypatch.setattr(run, "FAULTS_MIN", 2)
    outcome = run_seed(SEED, 1.0)
    assert not outcome.violated
    assert outcome.operations >= 100
    assert outcome.faults.total() - outcome.faults["switchover"] >= 2


@pytest.mark.parametrize(("operations", "faults"), [(1_000_000, 0), (0, 1_000)])
def test_a_whole_seed_that_proves_too_little_fails(
    monkeypatch: pytest.MonkeyPatch, operations: int, faults: int
) -> None:
    monkeypatch.setattr(run, "SECONDS", 1.0)
    monkeypatch.setattr(run, "MORE_S", 1.0)
    monkeypatch.setattr(run, "OPERATIONS_MIN", operations)
    monkeypatch.setattr(run, "FAULTS_MIN", faults)
    violated = run_seed(SEED, 1.0).violated
    assert len(violated) == 1
    assert violated[0].startswith("too_little: ") and f" of {operations} " in violated[0]
    assert not run_seed(SEED, 0.5).violated  # of a part nothing is asked


def test_the_fixed_set_meets_every_rare_branch(
    tmp_path: Path, figures: Callable[[str, object], None]
) -> None:
    done = _run(0, "--fixed", "--out", str(tmp_path))
    for line in done.stdout.splitlines():
        if "simulated hours" in line or line.startswith(("faults:", "sometimes:")):
            figures("simulation", line)
    assert done.returncode == 0, done.stdout + done.stderr
