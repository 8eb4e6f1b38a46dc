"""`python -m services.sim`: which seeds it begins at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from services.sim.__main__ import first_seed, shortened


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@example.com", *words],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_commit_chooses_seeds_that_its_neighbours_do_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _git(tmp_path, "init", "--quiet")
    chosen = []
    for said in ("one", "two"):
        _git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", said)
        chosen.append(first_seed("commit"))
        assert chosen[-1] == int(_git(tmp_path, "rev-parse", "HEAD")[:7], 16) * 10_000
        assert first_seed("commit") == chosen[-1]
    assert abs(chosen[0] - chosen[1]) >= 10_000


def test_without_a_checkout_it_is_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("services.sim.__main__.time.time", lambda: 12.7)
    assert first_seed("commit") == 120_000


def test_a_number_is_itself() -> None:
    assert first_seed("17") == 17
    with pytest.raises(ValueError):
        first_seed("seventeen")


def test_a_shortened_trace_keeps_faults_and_what_went_wrong() -> None:
    trace = [
        "1.0 history Ack 1", "1.1 fault fra crash", "1.2 fra.1 WARNING im.node slow",
        "1.3 fra.1 INFO im.audit ERROR no", "1.4 operator failback fra: done", "1.5 fra.1 INFO x y",
    ]  # fmt: skip
    assert shortened(trace) == [trace[1], trace[2], trace[4]]
