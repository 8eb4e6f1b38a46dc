"""JVMs start from the classes that another one has recorded, and without them as well."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from imctl.engines import jvm, recording
from imctl.engines.binaries import Program

TOOL = ["kafka.tools.StorageTool", "random-uuid"]
FROM_ARCHIVE = "shared objects file (top)"


def run(lib: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = jvm.command(lib, "broker", 64, TOOL)
    return subprocess.run(
        [command[0], *flags, *command[1:]], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def lib(kafka_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jars at another place, with no archive beside them."""
    folder = tmp_path_factory.mktemp("kafka") / "lib"
    folder.symlink_to(kafka_program.path)
    return folder


@pytest.mark.nightly  # `make engines` records in CI as well
def test_what_was_recorded_is_used_and_what_is_damaged_is_ignored(lib: Path) -> None:
    assert not recording.recorded(lib)
    assert FROM_ARCHIVE not in run(lib, "-Xlog:class+load").stdout
    said: list[str] = []
    recording.record(lib, lambda doing, done, total: said.append(doing))
    assert recording.recorded(lib) and "recording classes" in said
    assert run(lib, "-Xlog:class+load").stdout.count(FROM_ARCHIVE) > 500
    plain = run(lib)
    assert (plain.returncode, plain.stderr, len(plain.stdout.strip())) == (0, "", 22)
    jvm.archive(lib, "broker").write_bytes(b"not an archive")
    damaged = run(lib)
    assert (damaged.returncode, damaged.stderr, len(damaged.stdout.strip())) == (0, "", 22)
