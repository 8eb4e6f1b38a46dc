"""The charts: what Helm makes of them, what it refuses, and an upgrade and a rollback with it.

After a change that is meant: `REWRITE_GOLDEN=1 pytest tests/kubernetes/test_charts.py`, and read
the difference.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from imctl.api.model import IdcSpec
from imctl.errors import Failed
from imctl.reconcile.process import FINALIZER
from imctl.testing import golden
from imctl.testing.cluster import programs
from imctl.testing.cluster.cluster import Cluster as ApiServer
from imctl.testing.cluster.lab import operator_rights
from tests.kubernetes.test_admission import CORES, GATEWAYS, IDC, OPERATION, ROUTES, apply
from tests.kubernetes.test_operator_live import SEEN_S, Operators, prepare, until

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "charts_golden"
REGION = ROOT / "regions" / "two-idc.yaml"
Helm = Callable[..., str]
CHARTS = {
    "operator": ("im-operator", ["--set", "image=imctl:1"]),
    "operator-of-two-namespaces": (
        "im-operator", ["--set", "image=imctl:1,replicas=1,namespaces={im-fra,im-dub}"],
    ),
    "operator-with-a-webhook": (
        "im-operator", ["--set", "image=imctl:1,webhook.enabled=true,webhook.issuer.name=ca"],
    ),
    "operator-with-a-monitor": (
        "im-operator",
        ["--set", "image=imctl:1,monitoring.podMonitor.enabled=true,"
         "monitoring.podMonitor.labels.release=prometheus"],
    ),
    "operator-with-drills": (
        "im-operator",
        ["--set", "image=imctl:1,drills.enabled=true,priorityClassName=messages"],
    ),
    "idc": (
        "im-idc",
        ["--set-file", f"regionFile={REGION}", "--set",
         "spec.idc=fra,spec.image=imctl:1,spec.certificates.secret=fra-certificate"],
    ),
    "idc-with-gateways": (
        "im-idc",
        ["--set-file", f"regionFile={REGION}", "--set",
         "spec.idc=fra,spec.image=imctl:1,spec.certificates.secret=fra-certificate,"
         "gateways.replicas=1"],
    ),
    "idc-with-routes": (
        "im-idc",
        ["--set-file", f"regionFile={REGION}", "--set",
         "spec.idc=fra,spec.image=imctl:1,spec.certificates.secret=fra-certificate,"
         "gateways.replicas=1,routes.autoscaling.min=2,routes.autoscaling.max=4,"
         "monitoring.podMonitor.enabled=true,monitoring.podMonitor.certificate=viewer"],
    ),
    "idc-with-cores": (
        "im-idc",
        ["--set-file", f"regionFile={REGION}", "--set",
         "spec.idc=fra,spec.image=imctl:1,spec.certificates.secret=fra-certificate,"
         "gateways.replicas=1,cores.replicas=2,"
         "monitoring.podMonitor.enabled=true,monitoring.podMonitor.certificate=viewer"],
    ),
    "idc-with-a-monitor": (
        "im-idc",
        ["--set-file", f"regionFile={REGION}", "--set",
         "spec.idc=fra,spec.image=imctl:1,spec.certificates.secret=fra-certificate,"
         "monitoring.podMonitor.enabled=true,monitoring.podMonitor.certificate=viewer,"
         "monitoring.podMonitor.labels.release=prometheus,gateways.replicas=1"],
    ),
    "witness": (
        "im-idc",
        ["--set-file", f"regionFile={REGION}", "--set",
         "kind=Witness,spec.image=imctl:1,spec.certificates.issuer.name=region-ca"],
    ),
    "witness-beside-an-idc": (
        "im-idc",
        ["--set-file", f"regionFile={REGION}", "--set",
         "kind=Witness,spec.image=imctl:1,spec.certificates.secret=witness-certificate,"
         "region.create=false"],
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize("case", CHARTS)


@pytest.fixture(scope="session")
def helm(cluster_programs: programs.Programs) -> Helm:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [cluster_programs.helm, *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Failed(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    return run


def template(helm: Helm, case: str) -> str:
    chart, values = CHARTS[case]
    return helm("template", "fra", str(ROOT / "charts" / chart), "--namespace", "im-fra", *values)


@EVERY
def test_golden(helm: Helm, case: str) -> None:
    golden.check(template(helm, case), GOLDEN / f"{case}.yaml")


@EVERY
def test_lint(helm: Helm, case: str) -> None:
    chart, values = CHARTS[case]
    assert "0 chart(s) failed" in helm("lint", "--strict", str(ROOT / "charts" / chart), *values)


def test_the_idc_is_one_that_the_operator_takes(helm: Helm) -> None:
    documents = {each["kind"]: each for each in yaml.safe_load_all(template(helm, "idc"))}
    spec = IdcSpec.model_validate(documents["IDC"]["spec"])
    assert (spec.region, spec.idc) == ("two-idc", "fra")
    assert documents["Region"] | {"metadata": None} == (
        yaml.safe_load(REGION.read_text()) | {"metadata": None}
    )


@pytest.mark.parametrize("case", ["idc-with-routes", "idc-with-cores", "witness", "operator"])
@pytest.mark.parametrize("name", ["no", "on", "yes", "12"])
def test_names_that_yaml_takes_for_other_things_stay_names(
    helm: Helm, case: str, name: str
) -> None:
    chart, values = CHARTS[case]
    where = ["template", name, str(ROOT / "charts" / chart), "--namespace", name]
    for each in yaml.safe_load_all(helm(*where, *values)):
        metadata = each["metadata"]
        labels = metadata.get("labels", {})
        found = [metadata["name"], metadata.get("namespace", name), *labels.values()]
        found += [each["spec"]["idc"]] if "idc" in each.get("spec", {}) else []
        assert all(isinstance(one, str) for one in found), each


def test_a_monitor_of_an_idc_whose_name_yaml_takes_for_another_thing(
    helm: Helm, tmp_path: Path
) -> None:
    region = tmp_path / "region.yaml"
    text = REGION.read_text()
    region.write_text(text.replace("fra:", '"no":').replace("name: fra", 'name: "no"'))
    chart, values = CHARTS["idc-with-cores"]
    made = ["--set-file", f"regionFile={region}", *values[2:], "--set-string", "spec.idc=no"]
    text = helm("template", "no", str(ROOT / "charts" / chart), "--namespace", "on", *made)
    monitors = [each for each in yaml.safe_load_all(text) if each["kind"] == "PodMonitor"]
    assert len(monitors) == 3
    for each in monitors:
        assert each["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "no"
        (end,) = each["spec"]["podMetricsEndpoints"]
        assert {"targetLabel": "idc", "replacement": "no"} in end["relabelings"]
        assert end["tlsConfig"]["serverName"] == "no.imctl.internal"


def test_a_region_belongs_to_one_release_of_its_namespace(helm: Helm) -> None:
    """Two that brought it could not be installed beside each other."""
    made = [*yaml.safe_load_all(template(helm, "idc"))]
    made += yaml.safe_load_all(template(helm, "witness-beside-an-idc"))
    assert sorted(each["kind"] for each in made) == ["IDC", "Region", "Witness"]
    assert made[-1]["spec"]["region"] == "two-idc"


@pytest.mark.parametrize(
    ("case", "more", "why"),
    [
        ("operator", ["image="], "image"),
        ("operator", ["replicas=0"], "replicas"),
        ("operator", ["relicas=1"], "relicas"),
        ("witness", ["kind=IDC"], "say which IDC of the region this is"),
        ("idc", ["regionFile="], "give the region file"),
        ("idc", ["regionFile=kind: Pod"], "expected a Region"),
        ("idc", ["spec.certificate.secret=x"], "certificate"),
        ("idc", ["spec.service=ExternalName"], "service"),
        ("idc", ["kind=Gateway"], "kind"),
        ("idc", ["region.make=false"], "make"),
        ("idc", ["monitoring.podMonitor.enabled=true"], "a viewer's certificate"),
        ("witness", ["monitoring.podMonitor.enabled=true"], "a witness has no metrics"),
        ("witness", ["gateways.replicas=2"], "a witness has none"),
        ("idc", ["gateways.replica=2"], "replica"),
        ("witness", ["routes.replicas=2"], "a witness has none"),
        ("idc", ["routes.replicas=2"], "they need `gateways`"),
        ("idc", ["gateways.replicas=2,routes.replica=2"], "replica"),
        ("witness", ["cores.replicas=2"], "a witness has none"),
        ("idc", ["cores.replicas=2"], "they need `gateways`"),
        ("idc", ["gateways.replicas=2,cores.replicas=9"], "cores.replicas"),
        ("operator", ["webhook.enabled=true"], "give either `issuer.name`"),
        ("operator", ["webhook.enabled=true,webhook.secret=x"], "the CA of the secret"),
        ("operator", ["monitoring.rules.labels.a=1"], "labels"),
        ("operator", ["drills.folder=/tmp"], "folder"),
    ],
)
def test_values_that_are_wrong_are_refused(
    helm: Helm, case: str, more: list[str], why: str
) -> None:
    chart, values = CHARTS[case]
    if more[0].startswith("regionFile"):
        values = values[2:]
    with pytest.raises(Failed, match=why):
        helm("template", "fra", str(ROOT / "charts" / chart), *values, "--set", more[0])


def test_rules_and_dashboard_are_the_files_word_for_word(helm: Helm) -> None:
    made = ["monitoring.rules.enabled=true", "monitoring.dashboard.enabled=true"]
    chart, values = CHARTS["operator"]
    text = helm("template", "fra", str(ROOT / "charts" / chart), *values, "--set", ",".join(made))
    found = {each["kind"]: each for each in yaml.safe_load_all(text)}
    files = ROOT / "deploy" / "monitoring"
    assert found["PrometheusRule"]["spec"] == yaml.safe_load((files / "alerts.yaml").read_text())
    (dashboard,) = [each for each in yaml.safe_load_all(text) if each["kind"] == "ConfigMap"]
    shown = json.loads((files / "dashboard.json").read_text())
    assert json.loads(dashboard["data"]["imctl.json"]) == shown


def test_an_upgrade_and_the_way_back(api_server: ApiServer, namespace: str, helm: Helm) -> None:
    chart, values = CHARTS["idc"]
    where = ["fra", str(ROOT / "charts" / chart), "--namespace", namespace, *values]
    where += ["--kubeconfig", str(api_server.kubeconfig)]
    helm("install", *where)
    shown = ("get", "idc", "fra", "--namespace", namespace, "-o", "jsonpath={.spec.image}")
    assert api_server.kubectl(*shown) == "imctl:1"
    helm("upgrade", *where, "--set", "spec.image=imctl:2")
    assert api_server.kubectl(*shown) == "imctl:2"
    with pytest.raises(Failed, match="idc: not changeable on a live deployment"):
        helm("upgrade", *where, "--set", "spec.idc=dub")
    back = ["--namespace", namespace, "--kubeconfig", str(api_server.kubeconfig)]
    helm("rollback", "fra", "1", *back)
    assert api_server.kubectl(*shown) == "imctl:1"


def test_the_rights_of_the_chart_suffice(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    """The operator as a process outside, with the token of its service account and nothing else."""
    prepare(api_server, namespace)
    admin = Operators(api_server, namespace, tmp_path)
    with operator_rights(api_server, namespace, tmp_path) as own:
        operators = Operators(api_server, namespace, tmp_path, own)
        process = operators.start()
        try:
            until(lambda: admin.get("statefulset", "fra-idc") is not None)
            until(lambda: admin.phase() == "Starting")
            api_server.kubectl("delete", "service", "fra-idc-peer", "--namespace", namespace)
            until(lambda: admin.get("service", "fra-idc-peer") is not None, SEEN_S)
            asked = IDC | {"spec": IDC["spec"] | {"role_certificate": "imctl-operator"}}
            apply(api_server, namespace, asked)
            held = [("idc", "fra"), ("gatewaycluster", "fra"), ("region", "two-idc")]

            def holds(finalizers: list[str] | None) -> bool:
                found = [admin.get(*each)["metadata"].get("finalizers") for each in held]
                return found == [finalizers] * len(held)

            apply(api_server, namespace, GATEWAYS)
            apply(api_server, namespace, ROUTES)
            apply(api_server, namespace, CORES)
            until(lambda: holds([FINALIZER]))
            until(lambda: "status" in admin.get("routecluster", "fra"))
            until(lambda: "status" in admin.get("imcluster", "fra"))
            apply(api_server, namespace, IDC)
            until(lambda: holds(None))
            apply(api_server, namespace, OPERATION)
            until(lambda: "status" in admin.get("trafficoperation", "move"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            log = (tmp_path / "operator-0.log").read_text()
            assert "forbidden" not in log.lower(), log
        finally:
            operators.end()
