"""How many files a process may have open: in one of its own, as the limit is the process's."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from services.node.open_files import WANTED, raise_limit

CHILD = """
import logging, resource
from services.node.open_files import raise_limit
logging.basicConfig()
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
assert raise_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard"), [(256, 2_000), (2_000, 2_000)])
def test_it_takes_what_the_system_allows_and_says_what_it_lacks(soft: int, hard: int) -> None:
    child = [sys.executable, "-c", CHILD.format(soft=soft, hard=hard)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == [str(hard), str(hard)]
    assert f"may have {hard} files open" in done.stderr and str(WANTED) in done.stderr


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ((1_024, 524_288), (WANTED, 524_288)),
        ((1_024, -1), (WANTED, -1)),
        ((100_000, 524_288), (100_000, 524_288)),
        ((-1, -1), (-1, -1)),
    ],
)
def test_no_more_than_it_needs(
    monkeypatch: pytest.MonkeyPatch, found: tuple[int, int], left: tuple[int, int]
) -> None:
    limits = [found]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: limits.append(to))
    assert raise_limit() == left[0] and limits[-1] == left
