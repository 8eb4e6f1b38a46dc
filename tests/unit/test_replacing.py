"""Two commands that write one file of a deployment at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imctl.target import regions
from imctl.target.replacing import replacing


def test_of_two_processes_one_comes_after_the_other(tmp_path: Path) -> None:
    file = tmp_path / "region.yaml"
    with replacing(file) as new:
        new.write_text("a")
        if (child := os.fork()) == 0:  # pragma: no cover - another process
            with replacing(file) as its:
                its.write_text("b")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert file.read_text() == "b"
    assert file.read_text() == "a"
    assert list(tmp_path.iterdir()) == [file]


def test_what_fails_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "region.yaml"
    file.write_text("former")
    with pytest.raises(ValueError, match="no region"), replacing(file) as new:
        new.write_text("half")
        raise ValueError("no region")
    assert file.read_text() == "former"
    assert list(tmp_path.iterdir()) == [file]


def test_two_commands_keep_the_same_region_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits for a move of the KV, another one cancels it: both put the file right."""
    real = os.fsync

    def other_meanwhile(file: int) -> None:
        real(file)
        monkeypatch.setattr(os, "fsync", real)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            regions.keep(tmp_path, b"spec: 1\n")

    monkeypatch.setattr(os, "fsync", other_meanwhile)
    name = regions.keep(tmp_path, b"spec: 1\n")
    assert regions.path_of(tmp_path, name).read_bytes() == b"spec: 1\n"
    assert len(list((tmp_path / regions.FOLDER).iterdir())) == 1
