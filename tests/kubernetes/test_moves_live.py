"""A move by `imctl` through an operator on a real API server, of a deployment whose processes run
beside it: what is written, what is read back, and what a Role has to allow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from imctl.target.runfile import RunFile
from imctl.testing.cli import imctl, ok
from imctl.testing.cluster.cluster import Cluster as ApiServer
from imctl.testing.lab import lab_region
from tests.kubernetes.test_admission import apply
from tests.kubernetes.test_operator_live import Operators, until
from tests.kubernetes.test_traffic_live import holds, keep_certificate, status, view


def as_if_in_pods(data: Path, folder: Path, namespace: str) -> Path:
    """A folder by which `imctl` takes the deployment for one that it has brought to a cluster."""
    folder.mkdir()
    shutil.copytree(data / "pki", folder / "pki")
    shutil.copy(data / "region.yaml", folder / "region.yaml")
    region = yaml.safe_load((folder / "region.yaml").read_text())
    parts = [idc["name"] for idc in region["spec"]["idcs"]]
    site = {"namespace": namespace}
    sites = {"sites": dict.fromkeys(parts, site), "spec": {"image": "imctl:none"}}
    RunFile(str(folder / "region.yaml"), False, "", elsewhere=True, sites=sites).write(folder)
    return folder


@pytest.mark.e2e
def test_imctl_moves_by_the_operator_and_reads_it_back(
    api_server: ApiServer, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = lab_region(tmp_path), tmp_path / "deployment"
    operators = Operators(api_server, namespace, tmp_path)
    ok(data, "up", file, "--data", data)
    try:
        apply(api_server, namespace, yaml.safe_load(file.read_text()))
        keep_certificate(api_server, namespace, data / "pki")
        apply(api_server, namespace, view("GeoPolicy"))
        monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
        pods = as_if_in_pods(data, tmp_path / "pods", namespace)

        none = imctl(pods, "switchover", "fra", "iad", "--yes", "--by", "operator")
        assert none.returncode == 1 and "--by registries" in none.stderr, none

        operators.start()
        until(lambda: operators.holder() != "")
        until(lambda: holds(operators, "geopolicy"))
        asked = ("switchover", "fra", "iad", "--yes", "--reason", "a test")
        moved = imctl(pods, *asked, "-o", "json")  # by the operator: it is there
        assert moved.returncode == 0, moved
        decided = json.loads(moved.stdout)
        (made,) = json.loads(
            api_server.kubectl("get", "imop", "--namespace", namespace, "-o", "json")
        )["items"]
        name, spec = made["metadata"]["name"], made["spec"]
        assert (spec["move"], spec["idc"], spec["target"]) == ("switchover", "fra", "iad")
        assert spec["reason"] == "a test" and "@" in spec["asked_by"]
        assert f"TrafficOperation {namespace}/{name}" in moved.stderr
        until(lambda: status(operators, name).get("phase") == "Ended")
        found = status(operators, name)
        assert (found["operation"], found["state"]) == (decided["operation"], "done")

        shown = json.loads(ok(pods, "op", "show", f"{namespace}/{name}", "-o", "json"))
        assert (shown["id"], shown["state"]) == (decided["operation"], "done")
        until(lambda: holds(operators, "geopolicy"))
        read = json.loads(imctl(pods, "status", "-o", "json").stdout)["objects"]
        assert [row["object"] for row in read["moves"]] == [f"{namespace}/{name}"]
        assert [row["served"] for row in read["policies"]] == ["True"]

        again = imctl(pods, *asked)
        assert again.returncode == 3 and "transition" in again.stderr, again
        left = json.loads(
            api_server.kubectl("get", "imop", "--namespace", namespace, "-o", "json")
        )["items"]
        assert [each["metadata"]["name"] for each in left] == [name], "a refusal is not written"
    finally:
        operators.end()
        imctl(data, "down")
