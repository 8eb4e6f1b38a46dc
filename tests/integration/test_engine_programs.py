"""Finding and building engine programs, and `imctl engines`, as a user meets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from imctl.engines import binaries, building
from imctl.errors import Failed

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


def rows(told: subprocess.CompletedProcess[str]) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in json.loads(told.stdout)["engines"]}


def test_a_machine_with_nothing_is_told_what_to_do(tmp_path: Path) -> None:
    nothing, cache = tmp_path / "nothing", tmp_path / "cache"
    told = imctl("engines", "doctor", "-o", "json", path=nothing, cache=cache)
    assert told.returncode == 1
    found = rows(told)
    for name in ("etcd", "kafka", "pd", "tikv-mock"):
        assert not found[name]["found"] and found[name]["needed"]
        assert found[name]["install"] == f"imctl engines install {name}"
    for name in ("go", "java", "mvn"):
        assert not found[name]["found"] and found[name]["needed"] and found[name]["install"]
    refused = imctl("engines", "install", "etcd", path=nothing, cache=cache)
    assert refused.returncode == 1 and "error: no Go was found" in refused.stderr
    refused = imctl("engines", "install", "all", path=nothing, cache=cache)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert all(f"which gets {name}" in refused.stderr for name in ("etcd", "kafka", "pd"))
    started = imctl(
        "up", "regions/three-idc.yaml", "--engines", "etcd", "--data", str(tmp_path / "d"),
        path=nothing, cache=cache,
    )  # fmt: skip
    assert started.returncode == 1 and "`imctl engines install etcd`" in started.stderr
    assert not (tmp_path / "d").exists()


def test_an_etcd_of_the_system_will_do_when_it_is_new_enough(tmp_path: Path) -> None:
    program(tmp_path / "new", "etcd", 'echo "etcd Version: 3.4.23"')
    program(tmp_path / "old", "etcd", 'echo "etcd Version: 3.3.9"')
    for folder, enough in (("new", True), ("old", False)):
        told = imctl(
            "engines", "doctor", "-o", "json", path=tmp_path / folder, cache=tmp_path / "cache"
        )
        assert rows(told)["etcd"]["found"] == enough


def test_what_only_builds_is_not_needed_by_who_has_the_engines(tmp_path: Path) -> None:
    cache, path = tmp_path / "cache", tmp_path / "path"
    for engine in binaries.ENGINES.values():
        kind = "-go1.99" if engine.builds_with == "go" else ""
        folder = cache / f"{engine.name}-{binaries.source_hash(engine)}{kind}"
        folder.mkdir(parents=True)
        (folder / ("lib" if engine.builds_with == "mvn" else engine.name)).mkdir()
    program(path, "java", 'echo "openjdk version \\"17.0.15\\"" >&2')
    told = imctl("engines", "doctor", "-o", "json", path=path, cache=cache)
    found = rows(told)
    assert told.returncode == 0, told.stdout
    assert found["kafka"]["version"] == binaries.pinned(binaries.ENGINES["kafka"])
    assert not found["go"]["found"] and not found["go"]["needed"] and not found["mvn"]["needed"]
    program(path, "java", 'echo "openjdk version \\"11.0.2\\"" >&2')
    told = imctl("engines", "doctor", "-o", "json", path=path, cache=cache)
    assert told.returncode == 1 and not rows(told)["java"]["found"]
    assert rows(told)["kafka"]["found"]


def test_an_old_go_and_a_failed_build_are_one_line(tmp_path: Path) -> None:
    program(tmp_path / "old", "go", 'echo "go version go1.20.1 linux/amd64"')
    told = imctl("engines", "install", "etcd", path=tmp_path / "old", cache=tmp_path / "cache")
    assert told.returncode == 1 and "is too old for etcd: 1.24 or newer" in told.stderr
    program(
        tmp_path / "bad",
        "go",
        'test "$1" = version && echo "go version go1.99.0 x" || { echo "no route" >&2; exit 1; }',
    )
    told = imctl("engines", "install", "etcd", path=tmp_path / "bad", cache=tmp_path / "cache")
    assert told.returncode == 1 and told.stderr == "error: go could not build etcd: no route\n"
    program(
        tmp_path / "bad",
        "mvn",
        'test "$1" = -v && echo "Apache Maven 3.8.7" || { echo "[ERROR] no mirror"; exit 1; }',
    )
    told = imctl("engines", "install", "kafka", path=tmp_path / "bad", cache=tmp_path / "cache")
    assert told.returncode == 1 and told.stderr == "error: mvn could not build kafka: no mirror\n"
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_build_counts_what_it_does_and_leaves_only_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Go and Maven print is the part that is acted here; CI builds with the real ones."""
    monkeypatch.setenv(binaries.CACHE, str(tmp_path / "cache"))
    seen: list[tuple[str, int, int]] = []
    go = """case "$1" in
list) echo "go: downloading a v1"; echo a; echo; echo b;;
build) echo a; echo b; while [ "$1" != -o ]; do shift; done; echo x > "$2";;
esac"""
    program(tmp_path / "path", "go", go)
    builder = binaries.Program(tmp_path / "path" / "go", "1.99")
    engine = binaries.ENGINES["etcd"]
    built = building.build(engine, builder, lambda *now: seen.append(now))
    assert built == binaries.place(engine, builder) and built.read_text() == "x\n"
    assert ("fetching modules", 1, 0) in seen
    assert [now[1:] for now in seen if now[0].startswith("compiling")] == [(0, 2), (1, 2), (2, 2)]

    mvn = """for word in "$@"; do case "$word" in
-Dmdep.outputFile=*) printf '/m/a.jar:/m/b.jar' > "${word#*=}";;
-DoutputDirectory=*) mkdir "${word#*=}"; touch "${word#*=}/a.jar" "${word#*=}/b.jar";;
esac; done
echo "Downloaded from x: a.jar"
echo "[INFO] Copying a.jar to"; echo "[INFO] Copying b.jar to" """
    program(tmp_path / "path", "mvn", mvn)
    builder = binaries.Program(tmp_path / "path" / "mvn", "3.8.7")
    engine = binaries.ENGINES["kafka"]
    lib = building.build(engine, builder, lambda *now: seen.append(now))
    assert sorted(path.name for path in lib.iterdir()) == ["a.jar", "b.jar"]
    assert [path.name for path in lib.parent.iterdir()] == ["lib"]
    assert seen[-1] == ("copying jars", 2, 2)

    shutil.rmtree(lib.parent)
    program(tmp_path / "path", "mvn", mvn.replace('"${word#*=}/b.jar"', ""))
    with pytest.raises(Failed, match="Maven copied 1 jars of 2"):
        building.build(engine, builder, lambda *now: None)
    assert not lib.parent.exists()


def test_a_build_that_does_not_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binaries.CACHE, str(tmp_path / "cache"))
    engine = replace(binaries.ENGINES["etcd"], build_s=0.2)
    program(tmp_path / "path", "go", "exec sleep 60")
    builder = binaries.Program(tmp_path / "path" / "go", "1.99")
    with pytest.raises(Failed, match=r"getting etcd took more than 0\.2 s and was stopped"):
        building.build(engine, builder, lambda *now: None)


def test_a_program_that_is_told_its_version_by_the_linker_is_told_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binaries.CACHE, str(tmp_path / "cache"))
    go = """[ "$1" = build ] || exit 0
for word in "$@"; do case "$word" in -ldflags=*) flags=$word;; esac; done
while [ "$1" != -o ]; do shift; done; echo "$flags" > "$2" """
    program(tmp_path / "path", "go", go)
    builder = binaries.Program(tmp_path / "path" / "go", "1.99")
    engine = replace(binaries.ENGINES["etcd"], ldflags="-X a={version} -X b={major}.{minor}")
    built = building.build(engine, builder, lambda *now: None)
    version = binaries.pinned(engine)
    short = ".".join(version.split(".")[:2])
    assert built.read_text() == f"-ldflags=-s -w -X a={version} -X b={short}\n"
    assert binaries.built(engine) == binaries.Program(built, version)
    assert binaries.built(binaries.ENGINES["etcd"]) is None


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
        "up", "regions/three-idc.yaml", "--engines", "redis", path=tmp_path, cache=tmp_path
    )
    assert told.returncode == 2 and "--engines: expected" in told.stderr
    assert "got 'redis'" in told.stderr
    told = imctl("engines", "install", "redis", path=tmp_path, cache=tmp_path)
    assert told.returncode == 2
    assert (
        told.stderr == "error: expected one of etcd, kafka, pd, tikv-mock, versitygw, got 'redis'\n"
    )
