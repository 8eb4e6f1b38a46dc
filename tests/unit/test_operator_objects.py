"""The objects of an IDC and of a witness, as golden files; and what must hold of any of them.

After a change that is meant: `REWRITE_GOLDEN=1 pytest tests/unit/test_operator_objects.py`, and
read the difference.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore.pki import dns_name
from imcore.region.load import check_text, load_region
from imcore.region.model import Region
from imctl.api.model import (
    Certificates,
    IdcSpec,
    Issuer,
    Resources,
    Storage,
    Toleration,
    WitnessSpec,
)
from imctl.capacity.figures import Figures
from imctl.reconcile.objects import REGION_FILE, TEMPLATE, objects, region_text
from imctl.reconcile.observed import Object, Owner
from imctl.target import blank
from imctl.testing import golden

GOLDEN = Path(__file__).parent / "operator_golden"
REGIONS = Path(__file__).parents[2] / "regions"
FIGURES = Figures.of(yaml.safe_load((files("imctl.capacity") / "figures.yaml").read_text()))
SECRET = Certificates(secret="fra-certificate", region_keys="region-keys")
BY_ISSUER = Certificates(issuer=Issuer(name="region-ca"), region_keys="region-keys")
IDC = IdcSpec(region="two-idc", idc="fra", image="imctl:1", certificates=SECRET)
RICH = IDC.model_copy(
    update={
        "certificates": BY_ISSUER,
        "service": "LoadBalancer",
        "secrets": ["kafka"],
        "storage": Storage(size="100Gi", class_name="fast"),
        "resources": Resources(cpu="500m", cpu_limit="2", memory="2Gi"),
        "node_selector": {"disk": "nvme"},
        "tolerations": [
            Toleration(key="disk", value="nvme", effect="NoSchedule"),
            Toleration(operator="Exists", effect="NoExecute", seconds=300),
        ],
        "priority_class": "messages",
        "termination_grace_s": 90,
        "image_pull_secret": "registry",
    }
)
WITNESS = WitnessSpec(region="two-idc", image="imctl:1", certificates=SECRET)
CASES: dict[str, tuple[str, IdcSpec | WitnessSpec]] = {
    "idc": ("IDC", IDC),
    "idc-with-all": ("IDC", RICH),
    "witness": ("Witness", WITNESS),
}
EVERY = pytest.mark.parametrize("case", CASES)


def region() -> Region:
    return load_region(REGIONS / "two-idc.yaml")


def made(case: str, of: Region | None = None) -> list[Object]:
    kind, spec = CASES[case]
    owner = Owner(kind, "im-fra", "fra", "0a1b", 3)
    return objects(owner, spec, of or region(), FIGURES)


def pod_of(case: str, of: Region | None = None) -> Any:
    return made(case, of)[-1]["spec"]["template"]["spec"]


@EVERY
def test_golden(case: str) -> None:
    text = yaml.safe_dump_all(made(case), sort_keys=False, width=100)
    golden.check(text, GOLDEN / f"{case}.yaml")


@EVERY
def test_the_region_file_in_the_config_map_is_the_region(case: str) -> None:
    (config,) = [each for each in made(case) if each["kind"] == "ConfigMap"]
    loaded = check_text(config["data"]["region.yaml"], "region.yaml")
    assert loaded == (region(), [])
    assert region_text(region()) == config["data"]["region.yaml"]


@EVERY
def test_everything_goes_with_its_owner(case: str) -> None:
    for each in made(case):
        (owner,) = each["metadata"]["ownerReferences"]
        assert owner["controller"] and owner["uid"] == "0a1b"


@EVERY
def test_a_pod_is_restricted_in_every_way(case: str) -> None:
    """As the `restricted` level of Kubernetes' pod security asks, and no token of the API."""
    pod = pod_of(case)
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["limits"]["memory"]


def with_quic(of: Region) -> Region:
    client = of.spec.client.model_copy(update={"quic": True})
    return of.model_copy(update={"spec": of.spec.model_copy(update={"client": client})})


def test_quic_needs_the_ports_of_gateways_by_udp_too() -> None:
    whole = made("idc", with_quic(region()))
    (clients,) = [each for each in whole if each["metadata"]["name"] == "fra-idc-clients"]
    by_tcp = {p["name"]: p["port"] for p in clients["spec"]["ports"] if p["protocol"] == "TCP"}
    by_udp = {p["name"]: p["port"] for p in clients["spec"]["ports"] if p["protocol"] == "UDP"}
    assert by_udp == {"gateway-1-udp": by_tcp["gateway-1"]} and "ipconf" in by_tcp
    (policy,) = [each for each in whole if each["kind"] == "NetworkPolicy"]
    ports = policy["spec"]["ingress"][0]["ports"]
    assert {"protocol": "UDP", "port": by_tcp["gateway-1"]} in ports
    (container,) = whole[-1]["spec"]["template"]["spec"]["containers"]
    assert {
        "name": "gateway-1-udp", "containerPort": by_tcp["gateway-1"], "protocol": "UDP",
    } in container["ports"]  # fmt: skip
    assert "UDP" not in str(made("idc")) and "UDP" not in str(made("witness"))


def test_only_who_takes_drills_can_be_killed_from_inside_its_pod_and_takes_faults() -> None:
    owner, breakable = (
        Owner("IDC", "im-fra", "fra", "0a1b", 3),
        IDC.model_copy(update={"drills_from": ["im-fra"]}),
    )
    pods = [
        objects(owner, spec, region(), FIGURES)[-1]["spec"]["template"]["spec"]
        for spec in (IDC, breakable)
    ]
    assert ["shareProcessNamespace" in pod for pod in pods] == [False, True]
    assert ["--faults" in pod["containers"][0]["args"] for pod in pods] == [False, True]


@EVERY
def test_only_listeners_can_be_reached(case: str) -> None:
    (policy,) = [each for each in made(case) if each["kind"] == "NetworkPolicy"]
    (container,) = pod_of(case)["containers"]
    (rule,) = policy["spec"]["ingress"]
    reached = {each["port"] for each in rule["ports"]}
    assert reached == {each["containerPort"] for each in container["ports"]}


def test_a_process_that_hangs_is_told_by_its_own_answer_where_it_gives_one() -> None:
    (container,) = pod_of("idc")["containers"]
    (metrics,) = [each for each in container["ports"] if each["name"] == "metrics"]
    asked = {"scheme": "HTTPS", "path": "/livez", "port": metrics["containerPort"]}
    assert container["livenessProbe"]["httpGet"] == asked
    assert container["readinessProbe"]["httpGet"] == asked | {"path": "/readyz"}
    spec = region().spec
    ends = spec.idcs[0].endpoints.model_copy(update={"metrics": None})
    idcs = [spec.idcs[0].model_copy(update={"endpoints": ends}), *spec.idcs[1:]]
    without = region().model_copy(update={"spec": spec.model_copy(update={"idcs": idcs})})
    (container,) = pod_of("idc", without)["containers"]
    assert "tcpSocket" in container["livenessProbe"]
    assert "tcpSocket" in container["readinessProbe"]
    assert "metrics" not in {each["name"] for each in container["ports"]}


def test_the_admin_api_is_reached_where_there_is_one() -> None:
    spec = region().spec
    ends = spec.idcs[0].endpoints.model_copy(update={"admin": "10.0.0.1:7104"})
    idcs = [spec.idcs[0].model_copy(update={"endpoints": ends}), *spec.idcs[1:]]
    found = made(
        "idc", region().model_copy(update={"spec": spec.model_copy(update={"idcs": idcs})})
    )
    (policy,) = [each for each in found if each["kind"] == "NetworkPolicy"]
    assert 7104 in {port["port"] for port in policy["spec"]["ingress"][0]["ports"]}
    (service,) = [
        each
        for each in found
        if each["kind"] == "Service" and each["metadata"]["name"].endswith("-peer")
    ]
    assert [each["name"] for each in service["spec"]["ports"]] == ["peer", "admin"]
    (container,) = found[-1]["spec"]["template"]["spec"]["containers"]
    assert "admin" in {each["name"] for each in container["ports"]}


@EVERY
def test_every_mount_has_its_volume(case: str) -> None:
    kind = made(case)[-1]["spec"]
    volumes = {each["name"] for each in kind["template"]["spec"]["volumes"]}
    claims = {each["metadata"]["name"] for each in kind["volumeClaimTemplates"]}
    (container,) = kind["template"]["spec"]["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == volumes | claims


def test_a_pod_that_has_the_old_region_file_keeps_it() -> None:
    """Another region file is another ConfigMap and another template, which waits (`OnDelete`)."""
    spec = region().spec
    client = spec.client.model_copy(update={"grace_ms": 11_000})
    changed = region().model_copy(update={"spec": spec.model_copy(update={"client": client})})
    before, after = made("idc"), made("idc", changed)
    names = [[e["metadata"]["name"] for e in found if e["kind"] == "ConfigMap"]
             for found in (before, after)]  # fmt: skip
    assert names[0] != names[1]
    notes = [found[-1]["spec"]["template"]["metadata"]["annotations"] for found in (before, after)]
    assert notes[0][TEMPLATE] != notes[1][TEMPLATE]
    assert notes[0][REGION_FILE] != notes[1][REGION_FILE]
    assert after[-1]["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_a_peer_is_found_before_it_is_ready_and_clients_only_after() -> None:
    services = {e["metadata"]["name"]: e["spec"] for e in made("idc") if e["kind"] == "Service"}
    assert services["fra-idc-peer"]["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in services["fra-idc-clients"]


@pytest.mark.parametrize("case", ["idc", "witness"])
def test_a_node_port_is_the_endpoint_s_own(case: str) -> None:
    """Others dial what the region file says, and clients what ipconf says: the same."""
    kind, spec = CASES[case]
    owner = Owner(kind, "im-fra", "fra", "0a1b", 3)
    outside = spec.model_copy(update={"service": "NodePort"})
    for each in objects(owner, outside, region(), FIGURES):
        if each["kind"] == "Service":
            assert each["spec"]["type"] == "NodePort"
            assert all(port["nodePort"] == port["port"] for port in each["spec"]["ports"])


def test_cert_manager_is_asked_for_the_names_by_which_it_is_known() -> None:
    (certificate,) = [each for each in made("idc-with-all") if each["kind"] == "Certificate"]
    assert certificate["spec"]["commonName"] == dns_name("fra")
    assert certificate["spec"]["ipAddresses"] == ["127.0.0.1"]
    sources = pod_of("idc-with-all")["volumes"][2]["projected"]["sources"]
    assert sources[0]["secret"]["name"] == certificate["spec"]["secretName"]


def test_the_memory_that_it_asks_for_grows_with_its_sessions() -> None:
    spec = region().spec
    more = spec.idcs[0].capacity.model_copy(update={"sessions": 100_000})
    idcs = [spec.idcs[0].model_copy(update={"capacity": more}), *spec.idcs[1:]]
    large = region().model_copy(update={"spec": spec.model_copy(update={"idcs": idcs})})
    asked = [
        int(pod_of("idc", of)["containers"][0]["resources"]["requests"]["memory"][:-2])
        for of in (region(), large)
    ]
    assert asked[1] - asked[0] == pytest.approx(90_000 * FIGURES["connection_kib"] / 1024, abs=1)


def test_who_says_only_a_limit_of_cores_asks_for_all_of_it() -> None:
    """More than the limit an API server would refuse."""
    owner = Owner("IDC", "im-fra", "fra", "0a1b", 3)
    spec = IDC.model_copy(update={"resources": Resources(cpu_limit="500m")})
    pod = objects(owner, spec, region(), FIGURES)[-1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    cores = [container["resources"][what]["cpu"] for what in ("requests", "limits")]
    assert cores == ["500m", "500m"]


def test_the_pod_that_deletes_the_data_may_be_where_the_idc_s_is() -> None:
    pod = pod_of("idc-with-all")
    deletes = blank.pod("fra", "im-fra", "fra-idc", RICH, "2026-01-01T00:00:00Z")["spec"]
    for field in ("nodeSelector", "tolerations", "priorityClassName", "imagePullSecrets"):
        assert deletes[field] == pod[field]
