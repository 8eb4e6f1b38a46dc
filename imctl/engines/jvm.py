"""How a JVM of ours is started, with the classes that it need not load and check again.

A *class archive* (application class-data sharing, JEP 350) is what a JVM had loaded when it ended;
another one maps it. A broker started in 1.9 s with it and in 4.0 s without, for 1.9 and 3.0 s of
CPU. The JVM ignores an archive that another Java, or other jars, have made.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from imctl.errors import Failed

Kind = Literal["broker", "mirror"]
KINDS: tuple[Kind, ...] = ("broker", "mirror")
_JVM = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",  # starts in half the time, on a machine that runs several
    # Compiled after 20 calls, not 200: a broker of a deployment at rest answers some 30 requests a
    # second, interpreted for its first minutes. 1.5 ms of CPU for a fetch in place of 2.0.
    "-XX:CompileThresholdScaling=0.1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
)


def command(
    lib: Path, kind: Kind, heap_mb: int, arguments: Sequence[str], record: Path | None = None
) -> list[str]:
    """``lib``: the folder of the jars. ``record``: where the archive goes when this JVM ends, in
    place of using one. Raises Failed."""
    java = shutil.which("java")
    if java is None:
        raise Failed("no java was found, which runs Kafka: `apt-get install openjdk-17-jre`")
    shared = []
    if record is not None:
        shared = [f"-XX:ArchiveClassesAtExit={record}"]
    elif archive(lib, kind).exists():
        # One that does not fit is no error, and nothing to say on every start.
        shared = [f"-XX:SharedArchiveFile={archive(lib, kind)}", "-Xlog:cds=off,cds+dynamic=off"]
    return [java, f"-Xmx{heap_mb}m", *_JVM, *shared, "-cp", f"{lib}/*", *arguments]


def archive(lib: Path, kind: Kind) -> Path:
    return lib.with_name(f"{kind}.jsa")


def reason(output: str) -> str:
    """Why a JVM ended, by what it said last, and not where: of a trace the innermost cause."""
    said = [line for line in output.splitlines() if line.strip() and not line.startswith("\t")]
    return said[-1].removeprefix("Caused by: ") if said else "no reason given"
