"""Seeds side by side, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from imcore import countries
from services.sim import apart
from services.sim.apart import _PAGES, large_pages, outcomes, pages_offered

HEAP = """
held = [bytearray(64) for _ in range(100_000)]
areas = open("/proc/self/smaps").read().split("[heap]")[1:]
print(any("hg" in area.split("VmFlags:")[1].split("\\n")[0].split() for area in areas))
"""


def _tables(seed: int) -> int:
    return countries._table.cache_info().currsize


def test_every_seed_is_run_once() -> None:
    assert sorted(outcomes(partial(pow, 2), range(5), 2)) == [1, 2, 4, 8, 16]


def test_a_seed_is_taken_only_when_a_core_is_free_for_it() -> None:
    taken = count()
    found = outcomes(partial(pow, 2), taken, 2)
    assert next(found) in (1, 2)
    found.close()
    assert next(taken) <= 3


def test_seeds_are_given_large_pages_and_what_the_user_has_set_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    monkeypatch.setattr(apart, "pages_offered", lambda path: True)
    with large_pages():
        assert os.environ["PYTHONMALLOC"] == "malloc"
        assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
    assert "PYTHONMALLOC" not in os.environ
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"


def test_what_every_seed_would_load_is_there_when_it_begins() -> None:
    assert list(outcomes(_tables, [1], 1)) == [1]


def test_without_large_pages_the_allocator_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "enabled"
    assert not pages_offered(said)
    said.write_text("always [madvise] never\n")
    assert pages_offered(said)
    said.write_text("always madvise [never]\n")
    monkeypatch.setattr(apart, "_PAGES", said)
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    with large_pages():
        assert "PYTHONMALLOC" not in os.environ


@pytest.mark.skipif(
    not pages_offered(_PAGES) or os.confstr("CS_GNU_LIBC_VERSION") is None,
    reason="large pages are for a kernel that has them, and the GNU C library",
)
def test_the_kernel_is_asked_for_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONMALLOC", raising=False)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

    def asked() -> str:
        done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert asked() == "False"
    with large_pages():
        assert asked() == "True"
