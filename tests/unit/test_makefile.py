"""What the Makefile does to the environment of what it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


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


@pytest.mark.parametrize("failing", ["", "ruff", "pytest"])
def test_the_tests_and_what_is_linted_beside_them_must_both_be_good(
    tmp_path: Path, failing: str
) -> None:
    for name in ("ruff", "mypy", "python", "lint-imports", "pytest"):
        program = tmp_path / name
        said = f"echo {name} $1 >> {tmp_path / 'ran'}"
        program.write_text(f"#!/bin/sh\n{said}\n{'false' if name == failing else 'true'}\n")
        program.chmod(0o755)
    done = subprocess.run(
        ["make", f"BIN={tmp_path}", "PYTHON=true", "test"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    ran = (tmp_path / "ran").read_text()
    assert (done.returncode == 0) is (failing == ""), done.stderr
    assert "pytest -m" in ran and "ruff check" in ran
    assert ("lint-imports" in ran) is (failing != "ruff")
