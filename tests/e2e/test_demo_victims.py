"""The demo at full size with every IDC as its victim, each twice in a row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMCTL = Path(sys.executable).parent / "imctl"


@pytest.mark.e2e
@pytest.mark.nightly
@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.parametrize("victim", ["fra", "iad", "sin"])
def test_every_promise_holds_whoever_dies(victim: str, run: int, tmp_path: Path) -> None:
    command = [str(IMCTL), "demo", "--victim", victim, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
