"""What the Makefile does to the environment of what it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_compiled_code_is_kept_whatever_the_environment_says() -> None:
    shown = "show:; @echo kept: $$PYTHONDONTWRITEBYTECODE"
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", shown, "show"],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "kept:\n"
