"""`make drills`: every ready-made drill, one after the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from imctl.drill import model

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]

ROOT = Path(__file__).resolve().parents[2]
ALL_S = 3_600


def test_every_ready_made_drill_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.drills"], cwd=ROOT, timeout=ALL_S, check=False
    )
    assert done.returncode == 0
    for path in model.listed(ROOT / model.FOLDER):
        first = (ROOT / "build" / "drills" / path.stem / "report.md").read_text().splitlines()[0]
        assert first.startswith("pass: "), path.stem
