"""Building an engine's program from pinned sources: by Go, or by Maven's copies of its jars."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from imctl.engines.binaries import (
    CACHE,
    SOURCES,
    Engine,
    Program,
    cache_folder,
    numbers,
    pinned,
    place,
)
from imctl.errors import Failed

# (what is done now, how many of it are done, of how many; 0: nobody knows)
Progress = Callable[[str, int, int], None]


def build(engine: Engine, builder: Program, progress: Progress) -> Path:
    """From the package registry, whole or not at all. Raises Failed."""
    target = place(engine, builder)
    make = _copy_jars if engine.builds_with == "mvn" else _compile
    try:
        target.parent.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix=".build-") as scratch:
            fresh = Path(scratch) / "out"
            fresh.mkdir()
            make(engine, builder, fresh / target.name, progress)
            if not target.exists():  # nobody else was faster
                fresh.replace(target.parent)
    except OSError as error:
        if target.exists():
            return target
        raise Failed(
            f"cannot write in {cache_folder()}: {error.strerror}; choose another folder with "
            f"${CACHE}"
        ) from error
    return target


# --------------------------------------------------------------------------------------- Go


def _compile(engine: Engine, go: Program, target: Path, progress: Progress) -> None:
    environment = os.environ | {
        "GOTOOLCHAIN": "local",  # the compiler that is here, or an error
        "GOFLAGS": "-mod=readonly -buildvcs=false -modcacherw",  # whoever clears it may
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    if not os.environ.get("HOME"):  # Go keeps its caches below it
        environment["GOCACHE"] = str(cache_folder() / "go-build")
        environment["GOPATH"] = str(cache_folder() / "go")
    tags = engine.tags.replace(" ", ",")
    flags = ["-trimpath", f"-ldflags=-s -w {_stamps(engine)}".rstrip(), f"-tags={tags}"]
    fetched, stale = 0, 0
    progress("fetching modules", 0, 0)
    listing = [str(go.path), "list", "-deps", *flags, "-f", "{{if .Stale}}{{.Name}}{{end}}", "."]
    for line in _lines(engine, listing, environment):
        if line.startswith("go: downloading"):
            fetched += 1
            progress("fetching modules", fetched, 0)
        else:
            stale += bool(line)
    compiled = 0
    building = [str(go.path), "build", "-v", *flags, "-o", str(target), "."]
    progress("compiling packages", 0, stale)
    for line in _lines(engine, building, environment):
        compiled += not line.startswith("go: ")
        progress("compiling packages", compiled, stale)


def _stamps(engine: Engine) -> str:
    if not engine.ldflags:
        return ""
    version = pinned(engine)
    major, minor = numbers(version)
    return engine.ldflags.format(version=version, major=major, minor=minor)


# ------------------------------------------------------------------------------------ Maven


def _copy_jars(engine: Engine, mvn: Program, target: Path, progress: Progress) -> None:
    listed = target.with_name("classpath")
    command = [
        str(mvn.path), "--batch-mode", "--strict-checksums",
        "dependency:build-classpath", f"-Dmdep.outputFile={listed}",
        "dependency:copy-dependencies", f"-DoutputDirectory={target}",
        "-DincludeScope=runtime",
    ]  # fmt: skip
    fetched = copied = 0
    progress("fetching files", 0, 0)
    for line in _lines(engine, command, dict(os.environ)):
        if "Downloaded from" in line:
            fetched += 1
            progress("fetching files", fetched, 0)
        elif re.search(r"Copying \S+\.jar", line):
            copied += 1
            progress("copying jars", copied, len(listed.read_text().split(os.pathsep)))
    wanted = len(listed.read_text().split(os.pathsep))
    there = len(list(target.glob("*.jar")))
    if there != wanted:
        raise Failed(f"{engine.name}: Maven copied {there} jars of {wanted}")
    listed.unlink()


# ---------------------------------------------------------------------------------- running


def _lines(engine: Engine, command: list[str], environment: Mapping[str, str]) -> Iterator[str]:
    """What the command says, as it says it. Raises Failed for one that fails or does not end."""
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=SOURCES / engine.name,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as child:
        alarm = threading.Timer(engine.build_s, child.kill)
        alarm.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                said.append(line.strip())
                yield said[-1]
            child.wait()
            late = alarm.finished.is_set()
        finally:
            alarm.cancel()
            child.kill()
    if child.returncode == 0:
        return
    if late:
        raise Failed(f"getting {engine.name} took more than {engine.build_s:g} s and was stopped")
    program = Path(command[0]).name
    raise Failed(f"{program} could not build {engine.name}: {_why(said, child.returncode)}")


def _why(said: list[str], status: int) -> str:
    """Maven marks its errors, and repeats them in pages of advice; Go ends with its own."""
    errors = [line.removeprefix("[ERROR] ") for line in said if line.startswith("[ERROR] ")]
    words = errors[:2] or [line for line in said if line and not line.startswith("go: downl")][-3:]
    return " / ".join(words) or f"exit status {status}"
