"""`imctl engines render` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

IMCTL = Path(sys.executable).with_name("imctl")
ROOT = Path(__file__).resolve().parents[2]
THREE = ROOT / "regions" / "three-idc.yaml"
TIKV = {"Cluster": 1, "PDGroup": 1, "TiKVGroup": 1}


def render(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [IMCTL, "engines", "render", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def region(tmp_path: Path) -> Path:
    document = yaml.safe_load(THREE.read_text())
    for idc in document["spec"]["idcs"]:
        log = {"brokers": [f"{idc['name']}-kafka-bootstrap:9093"], "ca_file": "/k/ca.crt"}
        log |= {"cert_file": "/k/tls.crt", "key_file": "/k/tls.key"}
        idc["engines"] = {"log": {"kafka": log}, "kv": {"tikv": {"pd": [f"{idc['name']}-pd:2379"]}}}
    path = tmp_path / "region.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_objects_are_plain_yaml_or_a_list(region: Path) -> None:
    kinds = Counter({"Kafka": 1, "KafkaNodePool": 2, "KafkaTopic": 4, **TIKV})
    for arguments in ((), ("-o", "yaml")):
        shown = render(region, "--idc", "iad", *arguments)
        assert shown.returncode == 0, shown.stderr
        assert Counter(one["kind"] for one in yaml.safe_load_all(shown.stdout)) == kinds
    shown = render(region, "--idc", "iad", "-o", "json")
    assert Counter(one["kind"] for one in json.loads(shown.stdout)["items"]) == kinds


def test_flags_go_before_what_size_works_out(region: Path) -> None:
    sizes = ROOT / "docs" / "capacity-100.yaml"
    flags = ("--size", sizes, "--brokers", "7", "--store-disk", "1T", "--storage-class", "fast")
    shown = render(region, "--idc", "iad", *flags)
    found = {one["metadata"]["name"]: one["spec"] for one in yaml.safe_load_all(shown.stdout)
             if one["kind"] != "PDGroup"}  # fmt: skip
    assert found["brokers"]["replicas"] == 7
    assert found["brokers"]["resources"]["requests"] == {"cpu": "8", "memory": "32Gi"}
    assert found["brokers"]["storage"]["volumes"][0]["class"] == "fast"
    assert found["iad"]["replicas"] > 3  # the TiKVGroup, which comes last
    assert found["iad"]["template"]["spec"]["volumes"][0]["storage"] == "1T"


def test_who_makes_a_tikv_with_tls_is_told_what_that_takes(region: Path) -> None:
    assert "docs/tikv.md" in render(region, "--idc", "fra").stderr
    assert render(region, "--idc", "fra", "--no-tikv-tls").stderr == ""


def test_mistakes_are_one_sentence(region: Path) -> None:
    for arguments, said in (
        ((region, "--idc", "ams"), "error: --idc: expected one of fra, iad, sin, got 'ams'"),
        ((THREE, "--idc", "fra"), "error: fra: expected `log: {kafka: ...}` or `kv:"),
        ((region, "--idc", "fra", "--broker-disk", "1x"), "error: --broker-disk: expected a size"),
        ((region, "--idc", "fra", "--brokers", "2"), "error: --brokers: expected at least 3"),
    ):
        shown = render(*arguments)
        assert (shown.returncode, shown.stdout) == (2, "")
        assert shown.stderr.startswith(said)
