"""The pod that deletes the data of an IDC never touches those of one that runs again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from imctl.api.model import IdcSpec
from imctl.target import blank

LONG = "2999-01-01T00:00:00Z"


def filled(folder: Path) -> Path:
    (folder / "kv").mkdir(parents=True)
    (folder / "kv" / "rows").write_text("rows")
    return folder


def run(var: Path, until: str = LONG) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", blank.command(until, str(var))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_nothing_of_them_is_left_whatever_an_earlier_one_has_left(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    filled(tmp_path / "data.gone-17")
    (tmp_path / "other").mkdir()
    assert run(tmp_path).returncode == 0
    assert os.listdir(tmp_path) == ["other"]
    assert run(tmp_path).returncode == 0  # there is nothing to delete any more


def test_one_that_is_late_leaves_those_that_an_idc_has_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "data")
    filled(tmp_path / "data.gone-17")
    delete = shutil.rmtree

    def late(folder: Path) -> None:
        if not (tmp_path / "data" / "new").exists():
            (tmp_path / "data").mkdir(exist_ok=True)
            (tmp_path / "data" / "new").touch()
        delete(folder)

    monkeypatch.setattr(shutil, "rmtree", late)
    exec(blank.command(LONG, str(tmp_path)), {})  # noqa: S102
    assert os.listdir(tmp_path) == ["data"] and os.listdir(tmp_path / "data") == ["new"]


def test_one_that_begins_when_the_idc_may_run_again_deletes_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    done = run(tmp_path, "2026-01-01T00:00:00Z")
    assert done.returncode == 1 and "its data are in use" in done.stderr
    assert (tmp_path / "data" / "kv" / "rows").exists()


def test_it_ends_soon_when_it_is_told_to() -> None:
    keys = {"secret": "fra-certificate", "region_keys": "region-keys"}
    spec = IdcSpec.model_validate(
        {"region": "r", "idc": "fra", "image": "imctl:1", "certificates": keys}
    )
    made = blank.pod("fra", "im-fra", "fra-idc", spec, LONG)
    assert made["spec"]["terminationGracePeriodSeconds"] == 1
    assert made["spec"]["containers"][0]["command"] == ["python3", "-c", blank.command(LONG)]
