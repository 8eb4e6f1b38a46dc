"""What tests/conftest.py adds to a run, on small test files of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"


def run(folder: Path, test: str, *options: str, **environment: str) -> tuple[int, str]:
    shutil.copy(CONFTEST, folder / "conftest.py")
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider"]
    command += ["-p", "xdist", *options, str(folder)]
    variables = {name: value for name, value in os.environ.items() if name != "CI"} | environment
    variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # most of a start is their import
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("workers", ["0", "2"])
def test_figures_are_shown_of_good_and_of_failed_tests(tmp_path: Path, workers: str) -> None:
    status, said = run(
        tmp_path,
        "def test_good(figures):\n    figures('aliases', 120)\n"
        "def test_bad(figures):\n    figures('writes at fra', 7)\n    assert False\n",
        "-n",
        workers,
    )
    assert status == 1
    _, _, end = said.partition("figures ==")
    assert "aliases: 120  (test_good)" in end and "writes at fra: 7  (test_bad)" in end


def test_a_run_without_figures_has_no_such_section(tmp_path: Path) -> None:
    status, said = run(tmp_path, "def test_good():\n    pass\n")
    assert status == 0 and "figures ==" not in said


IMPOSSIBLE = """
def test_it(tmp_path, mount_tmpfs):
    mount_tmpfs(tmp_path / "disk", "no-size")
"""


def test_what_cannot_be_mounted_is_skipped_with_what_to_do(tmp_path: Path) -> None:
    status, said = run(tmp_path, IMPOSSIBLE)
    assert status == 0 and "1 skipped" in said
    assert "run it as root with the right to mount" in said


def test_what_cannot_be_mounted_fails_in_ci(tmp_path: Path) -> None:
    status, said = run(tmp_path, IMPOSSIBLE, CI="true")
    assert status == 1 and "CI must run this test" in said
