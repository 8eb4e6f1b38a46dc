"""``imctl demo`` before it starts anything: each thing that is wrong gets one clear line."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imcore.region.load import load_region
from imctl.testing.lab import lab_region

REGION = Path(__file__).parents[2] / "regions" / "three-idc.yaml"


def demo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imctl", "demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode not in (0, 130)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture
def region(tmp_path: Path) -> Iterator[tuple[Path, list[str]]]:
    """A region file whose ports are free but for two, on which somebody else listens."""
    path = lab_region(tmp_path)
    with contextlib.ExitStack() as stack:
        taken = []
        for idc in load_region(path).spec.idcs[:2]:
            host, _, port = idc.endpoints.ipconf.rpartition(":")
            stack.enter_context(socket.create_server((host, int(port))))
            taken.append(idc.endpoints.ipconf)
        yield path, taken


def test_a_victim_that_is_no_idc(tmp_path: Path) -> None:
    line = one_line(demo("--region", REGION, "--victim", "nowhere", "--out", tmp_path))
    assert "expected one of fra, iad, sin, got 'nowhere'" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = one_line(demo("--region", REGION, "--out", tmp_path / "file" / "out"))
    assert "cannot write in" in line and "--out" in line


def test_ports_in_use(tmp_path: Path, region: tuple[Path, list[str]]) -> None:
    path, taken = region
    line = one_line(demo("--region", path, "--out", tmp_path / "out"))
    assert f"cannot listen on {taken[0]}" in line and "1 more are taken too" in line


def test_a_region_file_that_is_not_there(tmp_path: Path) -> None:
    assert "none.yaml" in one_line(demo("--region", tmp_path / "none.yaml", "--out", tmp_path))
