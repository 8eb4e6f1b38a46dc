"""`imctl replication` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

IMCTL = Path(sys.executable).with_name("imctl")
THREE = Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml"


def replication(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [IMCTL, "replication", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.fixture
def region(tmp_path: Path) -> Path:
    document = yaml.safe_load(THREE.read_text())
    for number, idc in enumerate(document["spec"]["idcs"]):
        log = {"brokers": [f"k{number}:9093"], "ca_file": "/k/ca.pem"}
        log |= {"username": "im", "password_file": str(tmp_path / "password")}
        idc["engines"] = {"log": {"kafka": log}, "mirror": {"mirrormaker2": {}}}
    (tmp_path / "password").write_text("hunter2\n")
    path = tmp_path / "region.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_what_is_written_is_valid_until_it_is_changed(region: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mm2"
    assert replication("render", region, "iad", "--out", folder).returncode == 0
    settings = folder / "mm2.properties"
    assert "hunter2" not in settings.read_text()
    checked = replication("check", region, "iad", settings)
    assert (checked.returncode, checked.stderr) == (0, "")
    text = settings.read_text()
    settings.write_text(text.replace("iad.exactly.once.source.support=enabled\n", ""))
    checked = replication("check", region, "iad", settings)
    assert checked.returncode == 2
    assert "iad.exactly.once.source.support: expected enabled" in checked.stderr


def test_objects_for_kubernetes_are_plain_yaml_or_a_list(region: Path) -> None:
    for target, kinds in (
        ("strimzi", ["KafkaMirrorMaker2"]),
        ("deployment", ["ConfigMap", "Deployment"]),
    ):
        shown = replication("render", region, "iad", "--target", target)
        assert [one["kind"] for one in yaml.safe_load_all(shown.stdout)] == kinds
        assert "hunter2" not in shown.stdout and "&id" not in shown.stdout
        shown = replication("render", region, "iad", "--target", target, "-o", "json")
        assert [one["kind"] for one in json.loads(shown.stdout)["items"]] == kinds


def test_a_region_without_such_flows_is_told_so(region: Path) -> None:
    shown = replication("render", THREE, "iad")
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: iad: expected `mirror: {mirrormaker2: {}}`")
    assert "one of fra, iad, sin, got 'ams'" in replication("render", region, "ams").stderr
