"""Finding and building engine programs, and `imctl engines`, as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imctl.engines import binaries

IMCTL = Path(sys.executable).with_name("imctl")


def imctl(
    *arguments: str, path: Path, cache: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": str(path), binaries.CACHE: str(cache)} | more
    return subprocess.run(
        [IMCTL, *arguments], env=environment, capture_output=True, text=True, check=False
    )


def program(folder: Path, name: str, says: str) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{says}\n")
    file.chmod(0o755)


def test_a_machine_with_nothing_is_told_what_to_do(tmp_path: Path) -> None:
    nothing, cache = tmp_path / "nothing", tmp_path / "cache"
    told = imctl("engines", "doctor", "-o", "json", path=nothing, cache=cache)
    assert told.returncode == 1
    etcd, go = json.loads(told.stdout)["engines"]
    assert not etcd["found"] and etcd["install"] == "imctl engines install etcd"
    assert not go["found"] and go["needed"] and go["install"]
    refused = imctl("engines", "install", "etcd", path=nothing, cache=cache)
    assert refused.returncode == 1 and "error: no Go was found" in refused.stderr
    started = imctl(
        "up", "regions/three-idc.yaml", "--engines", "etcd", "--data", str(tmp_path / "d"),
        path=nothing, cache=cache,
    )  # fmt: skip
    assert started.returncode == 1 and "`imctl engines install etcd`" in started.stderr
    assert not (tmp_path / "d").exists()


def test_an_etcd_of_the_system_will_do_when_it_is_new_enough(tmp_path: Path) -> None:
    program(tmp_path / "new", "etcd", 'echo "etcd Version: 3.4.23"')
    program(tmp_path / "old", "etcd", 'echo "etcd Version: 3.3.9"')
    for folder, status in (("new", 0), ("old", 1)):
        told = imctl(
            "engines", "doctor", "-o", "json", path=tmp_path / folder, cache=tmp_path / "cache"
        )
        (etcd, _) = json.loads(told.stdout)["engines"]
        assert (told.returncode, etcd["found"]) == (status, status == 0)


def test_an_old_go_and_a_failed_build_are_one_line(tmp_path: Path) -> None:
    program(tmp_path / "old", "go", 'echo "go version go1.20.1 linux/amd64"')
    told = imctl("engines", "install", "etcd", path=tmp_path / "old", cache=tmp_path / "cache")
    assert told.returncode == 1 and "too old to build etcd: 1.24 or newer" in told.stderr
    program(
        tmp_path / "bad",
        "go",
        'test "$1" = version && echo "go version go1.99.0 x" || { echo "no route" >&2; exit 1; }',
    )
    told = imctl("engines", "install", "etcd", path=tmp_path / "bad", cache=tmp_path / "cache")
    assert told.returncode == 1 and told.stderr == "error: go could not build etcd: no route\n"
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_folder_is_chosen_as_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(binaries.CACHE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert binaries.cache_folder() == tmp_path / ".cache" / "imctl" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert binaries.cache_folder() == tmp_path / "x" / "imctl" / "engines"
    monkeypatch.setenv(binaries.CACHE, str(tmp_path / "e"))
    assert binaries.cache_folder() == tmp_path / "e"


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    told = imctl(
        "up", "regions/three-idc.yaml", "--engines", "kafka", path=tmp_path, cache=tmp_path
    )
    assert told.returncode == 2 and "--engines: expected etcd, got 'kafka'" in told.stderr
