"""What the tests on Kubernetes say on a machine that lacks something, and the smallest image."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from imctl.engines import binaries
from imctl.testing.cluster import image, programs
from imctl.testing.cluster.programs import SYSTEM


def test_a_machine_with_nothing_is_told_all_it_lacks_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binaries.CACHE, str(tmp_path))
    monkeypatch.setattr(programs, "find_file", lambda file: False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert programs.find() is None
    said = programs.missing()
    assert "\n" not in said and said.startswith("a test cluster needs root; ")
    assert f"`apt-get install {' '.join(SYSTEM)}`" in said
    assert "`make cluster` gets kubernetes, pause, " in said and "kubectl, helm" in said


def test_the_pause_image_is_that_program_alone() -> None:
    archive = image.pause(b"program", "localhost/pause:1")
    assert archive == image.pause(b"program", "localhost/pause:1")
    with tarfile.open(fileobj=io.BytesIO(archive)) as outer:
        files = {name: read(outer, name) for name in outer.getnames()}
    (manifest,) = json.loads(files["manifest.json"])
    assert manifest["RepoTags"] == ["localhost/pause:1"]
    config = json.loads(files[manifest["Config"]])
    (layer,) = (files[name] for name in manifest["Layers"])
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as inner:
        (entry,) = inner.getmembers()
        assert config["config"]["Entrypoint"] == [f"/{entry.name}"] and entry.mode == 0o755
        assert read(inner, entry.name) == b"program"


def read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()
