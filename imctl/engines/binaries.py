"""Where engine programs are found, and how they are built.

A program that was built lies in the cache folder, under a name that tells its sources and its
compiler: other pins give another folder, and nothing that runs is ever replaced.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from imctl.errors import Failed

CACHE = "IMCTL_ENGINES"  # the cache folder, when it is not the usual one
SOURCES = Path(__file__).parents[2] / "tools" / "engines"
GO_LEAST = (1, 24)
ETCD_LEAST = (3, 4)
ASK_S = 10.0
BUILD_S = 1_200.0


class Program(NamedTuple):
    """``version``: as it says itself, "3.6.6"."""

    path: Path
    version: str


def cache_folder() -> Path:
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE]).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "imctl" / "engines"


# ---------------------------------------------------------------------------------- finding


def find_etcd() -> Program | None:
    """The pinned one that was built here, else one of the system that is new enough."""
    built = sorted(cache_folder().glob(f"etcd-{_source_hash('etcd')}-*/etcd"))
    system = shutil.which("etcd")
    for path in [*reversed(built), *([Path(system)] if system else [])]:
        version = _asked(path, "--version", r"etcd Version: (\d+\.\d+\.\S+)")
        if version and numbers(version) >= ETCD_LEAST:
            return Program(path, version)
    return None


def find_kafka() -> Program | None:
    """Kafka's jars: ``path`` is the folder that holds them."""
    for path in sorted(cache_folder().glob("kafka-*/lib"), reverse=True):
        core = next(path.glob("kafka_2.13-*.jar"), None)
        if core is not None and shutil.which("java"):
            return Program(path, core.stem.partition("-")[2])
    return None


def find(name: str) -> Program | None:
    """ "etcd", "kafka", "pd" or "tikv-mock"."""
    if name in ("etcd", "kafka"):
        return find_etcd() if name == "etcd" else find_kafka()
    built = sorted(cache_folder().glob(f"{name}-{_source_hash(name)}-*/{name}"))
    return Program(built[-1], "") if built else None


def need_etcd() -> Program:
    """Raises Failed."""
    found = find_etcd()
    if found is None:
        raise Failed(
            "no etcd was found: `imctl engines install etcd` builds it (about half a minute), or "
            f"put one from {'.'.join(map(str, ETCD_LEAST))} on into PATH"
        )
    return found


def find_go() -> Program | None:
    path = shutil.which("go")
    version = path and _asked(Path(path), "version", r"go version go(\S+)")
    return Program(Path(path), version) if path and version else None


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _asked(path: Path, argument: str, pattern: str) -> str:
    """Empty when it does not run."""
    # Never another toolchain than this one: what was asked is what is used.
    environment = os.environ | {"GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run(
            [path, argument],
            capture_output=True,
            text=True,
            timeout=ASK_S,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(pattern, done.stdout)
    return found[1] if found else ""


def _source_hash(name: str) -> str:
    digest = hashlib.sha256()
    for file in ("go.mod", "go.sum", "main.go"):
        path = SOURCES / name / file
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:12]


# --------------------------------------------------------------------------------- building


def need_go() -> Program:
    """Raises Failed."""
    least = ".".join(map(str, GO_LEAST))
    go = find_go()
    if go is None:
        raise Failed(
            f"no Go was found, which builds etcd: install Go {least} or newer (`apt-get install "
            "golang-go`, where it is new enough), or an etcd (`apt-get install etcd-server`)"
        )
    if numbers(go.version) < GO_LEAST:
        raise Failed(f"Go {go.version} at {go.path} is too old to build etcd: {least} or newer")
    return go


def pinned(name: str, module: str) -> str:
    """The version that go.mod names."""
    path = SOURCES / name / "go.mod"
    if not path.exists():
        raise Failed(f"{path} is not there: engines are built from a checkout of imctl")
    found = re.search(rf"{re.escape(module)} v(\S+)", path.read_text())
    return found[1] if found else "unknown"


def place(name: str, go: Program) -> Path:
    """Where this machine's build of the pinned program lies, or will lie."""
    return cache_folder() / f"{name}-{_source_hash(name)}-go{go.version}" / name


def build(name: str, go: Program) -> Path:
    """Builds it from the module proxy, whole or not at all. Raises Failed."""
    target = place(name, go)
    try:
        target.parent.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix=".build-") as scratch:
            fresh = Path(scratch) / "out"
            fresh.mkdir()
            _compile(name, go, fresh / name)
            if target.parent.exists():  # somebody else was faster
                return target
            fresh.replace(target.parent)
    except OSError as error:
        raise Failed(
            f"cannot write below {cache_folder()}: {error.strerror}; choose another folder with "
            f"${CACHE}"
        ) from error
    return target


def _compile(name: str, go: Program, target: Path) -> None:
    environment = os.environ | {
        "GOTOOLCHAIN": "local",  # the compiler that is here, or an error
        "GOFLAGS": "-mod=readonly -buildvcs=false -modcacherw",  # whoever clears it may
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    if not os.environ.get("HOME"):  # Go keeps its caches below it
        environment["GOCACHE"] = str(cache_folder() / "go-build")
        environment["GOPATH"] = str(cache_folder() / "go")
    command = [str(go.path), "build", "-trimpath", "-ldflags=-s -w", "-o", str(target), "."]
    try:
        done = subprocess.run(
            command,
            cwd=SOURCES / name,
            env=environment,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"building {name} took more than {BUILD_S:g} s and was stopped") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if not line.startswith("go: downloading")]
        last = " / ".join(said[-3:]) or f"exit status {done.returncode}"
        raise Failed(f"go could not build {name}: {last}")
