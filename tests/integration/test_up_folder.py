"""Where `imctl up` puts a deployment: where every other command then looks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from imctl import startup
from imctl.commands import lifecycle
from imctl.target.local import Local

REGION = Path(__file__).parents[2] / "regions" / "three-idc.yaml"


def test_up_takes_the_folder_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []

    def bring_up(target: Local, *_: object) -> None:
        started.append(target.data)

    monkeypatch.setattr(startup, "bring_up", bring_up)
    monkeypatch.setenv("IMCTL_DATA", str(tmp_path / "named"))
    lifecycle.up(REGION)
    lifecycle.up(REGION, data=tmp_path / "given")
    assert started == [tmp_path / "named", tmp_path / "given"]
