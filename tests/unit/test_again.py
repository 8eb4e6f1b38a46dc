"""What a run of the tests tries again, and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CONFTEST = """
from tests import again, lanes

pytest_itemcollected = again.pytest_itemcollected
pytest_xdist_make_scheduler = lanes.pytest_xdist_make_scheduler
"""
# Each fails at its first try.
LATE = """
from pathlib import Path

def first(name):
    tried = Path(__file__).with_name(name)
    before = tried.exists()
    tried.touch()
    return not before

def test_late():
    assert not first("late"), "not within 20 s"
"""
FINAL = """
from imctl.testing.broken import PromiseBroken

def test_lost():
    if first("lost"):
        raise PromiseBroken("1 missing")

def test_open():
    if first("open"):
        raise ResourceWarning("unclosed transport")
"""


def outcomes(folder: Path, *options: str) -> tuple[set[str], str]:
    """Of all tests in ``folder``: those that failed, and the last line."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    plugins = ["-p", "xdist", "-p", "pytest_rerunfailures"]  # most of a start is their import
    command = [sys.executable, "-m", "pytest", *plugins, "-n", "2", "-rf", *options, "tests"]
    variables = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    variables |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(done.stdout, done.stderr)
    lines = done.stdout.splitlines()
    failed = {line.split()[1] for line in lines if line.startswith("FAILED ") and " - " in line}
    return {name.rpartition("/")[2] for name in failed}, lines[-1]


@pytest.mark.parametrize(("options", "again"), [((), False), (("--max-suite-reruns", "3"), True)])
def test_only_a_limit_of_time_is_tried_again(
    tmp_path: Path, options: tuple[str, ...], again: bool
) -> None:
    every = set()
    for where in ("e2e", "unit"):
        file = tmp_path / "tests" / where / f"test_{where}.py"
        file.parent.mkdir(parents=True)
        file.write_text(LATE + FINAL)
        every |= {f"{file.name}::test_{what}" for what in ("late", "lost", "open")}
    failed, last = outcomes(tmp_path, *options)
    assert failed == (every - {"test_e2e.py::test_late"} if again else every)
    assert ("5 failed, 1 passed, 1 rerun" if again else "6 failed") in last


def test_no_more_are_tried_again_than_was_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "e2e"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"test_{number}.py").write_text(LATE.replace('"late"', f'"late{number}"'))
    failed, last = outcomes(tmp_path, "--max-suite-reruns", "2")
    assert len(failed) == 1 and "1 failed, 2 passed, 2 rerun" in last
