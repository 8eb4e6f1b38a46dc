"""A program walks nothing of what it imports, again and again, for garbage."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from imcore.starting import uncollected

SHOW = "; import gc; print(gc.get_freeze_count(), gc.get_stats()[2]['collections'])"


@pytest.mark.parametrize(
    "begin",
    [
        "import services.node.__main__",
        "import services.linkproxy.__main__",
        "import services.witness.__main__",
        "from imctl.main import load; load('status')",
    ],
)
def test_what_a_program_imports_is_not_walked_for_garbage(begin: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", begin + SHOW], capture_output=True, text=True, check=True
    )
    frozen, walks_of_all = map(int, done.stdout.split())
    assert frozen > 50_000
    assert walks_of_all <= 1


@pytest.mark.parametrize("collecting", [True, False])
def test_afterwards_garbage_is_collected_as_before(collecting: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() is collecting
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()
