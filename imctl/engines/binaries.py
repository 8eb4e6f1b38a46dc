"""Which engine programs there are, and where they are found.

A program that was built lies in the cache folder, under a name that tells its sources and its
compiler: other pins give another folder, and nothing that runs is ever replaced.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imcore.errors import BadInput
from imctl.errors import Failed

CACHE = "IMCTL_ENGINES"  # the cache folder, when it is not the usual one
SOURCES = Path(__file__).parents[2] / "tools" / "engines"
ASK_S = 10.0


class Program(NamedTuple):
    """``version``: as it says itself, or as it is pinned: "3.6.6"."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True)
class Tool:
    """What builds or runs engines, and comes from the system."""

    name: str
    words: str
    least: tuple[int, ...]
    ask: tuple[str, str]  # the argument that makes it say its version, and where that stands
    remedy: str

    @property
    def needs(self) -> str:
        return f"{self.words} {dotted(self.least)} or newer"


@dataclass(frozen=True, slots=True)
class Engine:
    """``pin``: before what its sources name its version. ``system``: the oldest one in PATH that
    will do instead of the pinned one; empty: none will."""

    name: str
    words: str  # what it is
    serves: str  # for what
    pin: str
    takes: str  # how long a build takes
    builds_with: str = "go"
    builds_from: tuple[int, ...] = ()  # a newer one of that than the others need
    runs_with: str = ""
    tags: str = ""  # of the Go build
    ldflags: str = ""  # of the Go build; may name {version}, {major} and {minor}
    build_s: float = 1_200.0  # a build that takes longer hangs
    system: tuple[int, ...] = ()
    ask: tuple[str, str] = ("", "")

    @property
    def sources(self) -> list[Path]:
        """All that a build depends on."""
        folder = SOURCES / self.name
        if self.builds_with == "mvn":
            return [folder / "pom.xml"]
        return [folder / "go.mod", folder / "go.sum", *sorted(folder.glob("*.go"))]


GO = Tool("go", "Go", (1, 24), ("version", r"go version go(\S+)"), "apt-get install golang-go")
JAVA = Tool(
    "java", "Java", (17,), ("-version", r'version "([^"]+)"'), "apt-get install openjdk-17-jre"
)
MAVEN = Tool("mvn", "Maven", (3, 6), ("-v", r"Apache Maven (\d[\d.]*)"), "apt-get install maven")
TOOLS = {tool.name: tool for tool in (GO, JAVA, MAVEN)}

ENGINES = {
    engine.name: engine
    for engine in (
        Engine(
            "etcd",
            "etcd",
            "registry",
            "go.etcd.io/etcd/server/v3 v",
            "about half a minute",
            system=(3, 4),
            ask=("--version", r"etcd Version: (\d+\.\d+\.\S+)"),
        ),
        Engine(
            "kafka",
            "Kafka and MirrorMaker 2",
            "log and mirror",
            "<kafka.version>",
            "about ten seconds",
            builds_with="mvn",
            runs_with="java",
        ),
        Engine(
            "pd",
            "PD of TiKV",
            "KV",
            "github.com/tikv/pd v",
            "about three minutes",
            tags="without_dashboard without_swagger",
        ),
        Engine(
            "tikv-mock",
            "TiKV-protocol mock",
            "KV, on a test machine",
            "github.com/tikv/client-go/v2 v",
            "about two minutes",
        ),
        Engine(
            "versitygw",
            "an S3 server",
            "files, on a test machine",
            "github.com/versity/versitygw v",
            "about two minutes",
            builds_from=(1, 25),
        ),
    )
}


def cache_folder() -> Path:
    if os.environ.get(CACHE):
        return Path(os.environ[CACHE]).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "imctl" / "engines"


def engine_named(name: str) -> Engine:
    """Raises BadInput."""
    if name not in ENGINES:
        raise BadInput(f"expected one of {', '.join(ENGINES)}, got {name!r}")
    return ENGINES[name]


# ---------------------------------------------------------------------------------- finding


def installed(name: str) -> Program | None:
    """The pinned one that was built here, else one of the system that is new enough. What runs it
    may be missing: see ``find``."""
    engine = engine_named(name)
    if own := built(engine):
        return own
    system = shutil.which(name) if engine.system else None
    version = _asked(Path(system), *engine.ask) if system else ""
    if system and version and numbers(version) >= engine.system:
        return Program(Path(system), version)
    return None


def built(engine: Engine) -> Program | None:
    """The pinned one that was built here."""
    pattern = f"{engine.name}-{source_hash(engine)}*/{_inside(engine)}"
    there = sorted(cache_folder().glob(pattern))
    version = _pinned(engine)
    return Program(there[-1], version) if there and version else None


def find(name: str) -> Program | None:
    """What can be run here: a program, or for ``kafka`` the folder of its jars. None without it, or
    without what runs it."""
    engine = engine_named(name)
    if engine.runs_with and find_tool(engine.runs_with) is None:
        return None
    return installed(name)


def need(name: str) -> Program:
    """Raises Failed, with what to do."""
    found = find(name)
    if found is None:
        raise Failed(missing([name]))
    return found


def missing(names: Sequence[str]) -> str:
    """What to do about those of these engines that cannot run here; empty when all can."""
    said = []
    absent = [ENGINES[name] for name in names if installed(name) is None]
    if absent:
        install = " ".join(engine.name for engine in absent)
        line = f"{install} not found: `imctl engines install {install}` gets " + (
            f"it ({absent[0].takes})" if len(absent) == 1 else "them"
        )
        if len(absent) == 1 and absent[0].system:
            line += f", or put one from {dotted(absent[0].system)} on into PATH"
        said.append(line)
    runners = dict.fromkeys(ENGINES[name].runs_with for name in names if ENGINES[name].runs_with)
    tools = [TOOLS[runner] for runner in runners if find_tool(runner) is None]
    said += [f"no {tool.needs} was found (`{tool.remedy}`)" for tool in tools]
    return "; ".join(said)


def find_tool(name: str) -> Program | None:
    """None also for one that is too old."""
    found = any_tool(name)
    return found if found and numbers(found.version) >= TOOLS[name].least else None


def any_tool(name: str) -> Program | None:
    path = shutil.which(name)
    version = _asked(Path(path), *TOOLS[name].ask) if path else ""
    return Program(Path(path), version) if path and version else None


def need_tool(name: str, engine: Engine) -> Program:
    """Raises Failed. ``engine``: what it is needed for."""
    tool, found = TOOLS[name], any_tool(name)
    least = max(tool.least, engine.builds_from)
    other = f", or a {engine.name} in PATH" if engine.system else ""
    if found is None:
        raise Failed(
            f"no {tool.words} was found, which gets {engine.name}: install {tool.words} "
            f"{dotted(least)} or newer (`{tool.remedy}`, where it is new enough){other}"
        )
    if numbers(found.version) < least:
        raise Failed(
            f"{tool.words} {found.version} at {found.path} is too old for {engine.name}: "
            f"{dotted(least)} or newer"
        )
    return found


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _asked(path: Path, argument: str, pattern: str) -> str:
    """Empty when it does not run."""
    # Never another toolchain than this one: what was asked is what is used.
    environment = os.environ | {"GOTOOLCHAIN": "local"}
    try:
        done = subprocess.run(
            [path, argument],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # where Java says its version
            text=True,
            timeout=ASK_S,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(pattern, done.stdout)
    return found[1] if found else ""


# ---------------------------------------------------------------------------------- pinning


def pinned(engine: Engine) -> str:
    """The version that its sources name. Raises Failed."""
    version = _pinned(engine)
    if not version:
        raise Failed(
            f"{engine.sources[0]} is not there: engines are built from a checkout of imctl"
        )
    return version


def _pinned(engine: Engine) -> str:
    try:
        text = engine.sources[0].read_text()
    except OSError:
        return ""
    found = re.search(rf"{re.escape(engine.pin)}([^\s<]+)", text)
    return found[1] if found else "unknown"


def source_hash(engine: Engine) -> str:
    digest = hashlib.sha256()
    for path in engine.sources:
        digest.update(path.read_bytes() if path.exists() else b"")
    digest.update(f"{engine.tags}{engine.ldflags}".encode())
    return digest.hexdigest()[:12]


def place(engine: Engine, builder: Program) -> Path:
    """Where this machine's build of the pinned program lies, or will lie. A program depends on its
    compiler, jars that are copied on nobody."""
    compiler = f"-go{builder.version}" if engine.builds_with == "go" else ""
    return cache_folder() / f"{engine.name}-{source_hash(engine)}{compiler}" / _inside(engine)


def _inside(engine: Engine) -> str:
    return "lib" if engine.builds_with == "mvn" else engine.name
