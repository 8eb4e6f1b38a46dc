"""``make fuzz`` itself: it finds, it says so, it keeps the input, and it stops in time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="Atheris has wheels for Linux on x86-64 only")

ROOT = Path(__file__).parents[2]
PLANTED = """
from fuzz.target import Target

def check(data: bytes) -> None:
    if data[:1] == b"I" and data[1:2] == b"M" and data[2:3] == b"!":
        raise ValueError("planted")

TARGET = Target("frames", check, lambda: [b"hello"], bytes_max=16)
"""


def _fuzz(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *arguments], cwd=folder, text=True, timeout=100,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the fuzz package, with a target that has a defect three comparisons deep."""
    for path in (ROOT / "fuzz").glob("*.py"):
        (tmp_path / "fuzz").mkdir(exist_ok=True)
        (tmp_path / "fuzz" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "fuzz" / "targets").mkdir()
    (tmp_path / "fuzz" / "targets" / "__init__.py").touch()
    (tmp_path / "fuzz" / "targets" / "frames.py").write_text(PLANTED)
    return tmp_path


def test_what_coverage_leads_to_is_found_and_kept(checkout: Path) -> None:
    done = _fuzz(checkout, "--minutes", "0.5", "frames")
    assert done.returncode == 1, done.stdout + done.stderr
    (found,) = (checkout / "fuzz" / "corpus" / "frames").iterdir()
    assert found.read_bytes().startswith(b"IM!")
    assert found.name in done.stdout
    assert "planted" in done.stdout


def test_a_clean_target_ends_in_time(checkout: Path) -> None:
    planted = checkout / "fuzz" / "targets" / "frames.py"
    planted.write_text(PLANTED.replace("raise ValueError", "ValueError"))
    begun = time.monotonic()
    done = _fuzz(checkout, "--minutes", "0.05", "frames")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - begun < 30
    assert not list((checkout / "fuzz" / "corpus" / "frames").iterdir())


def test_an_unknown_target_is_named(checkout: Path) -> None:
    done = _fuzz(checkout, "nothing")
    assert done.returncode == 2
    assert "no target nothing; expected some of frames, " in done.stderr
