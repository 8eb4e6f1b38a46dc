"""Objects that we make for other operators are taken by a real API server with their CRDs: what it
judges beyond their schemas (rules between fields, unknown fields) too. What those operators then
make of them is not run here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from imctl.engines import strimzi
from imctl.engines.mm2_config import Cluster, Credentials, Flows
from imctl.errors import Failed
from imctl.testing.cluster.cluster import Cluster as ApiServer
from imctl.testing.cluster.lab import until_known

IMCTL = Path(sys.executable).with_name("imctl")
THREE = Path(__file__).parents[2] / "regions" / "three-idc.yaml"
CRDS = Path(__file__).parents[3] / "shared" / "crds"
SECRET = "kafka-client"
TLS = Credentials(Path("/k/ca.pem"), Path("/k/c.pem"), Path("/k/c.key"))
USER = Credentials(Path("/k/ca.pem"), username="im", password="${file:/m/s:password}")
REHEARSE = ("create", "--dry-run=server", "--validate=strict", "-f", "-")


@pytest.fixture(scope="module")
def with_crds(api_server: ApiServer) -> Iterator[ApiServer]:
    """Of Strimzi and TiDB Operator. They are gone afterwards: other tests have none of them."""
    if not CRDS.exists():
        pytest.skip("not run: the published CRDs of others are not beside this checkout")
    files = [argument for file in sorted(CRDS.glob("*.yaml")) for argument in ("-f", str(file))]
    api_server.kubectl("apply", "--server-side", *files)
    try:
        for file in CRDS.glob("*.yaml"):
            names = yaml.safe_load(file.read_text())["spec"]["names"]
            until_known(api_server, names["plural"])
        yield api_server
    finally:
        api_server.kubectl("delete", *files)


def flows(tls: bool, sasl: bool) -> Flows:
    sources = tuple(Cluster(name, (f"{name}:9093",), tls, sasl) for name in ("fra", "sin"))
    return Flows(Cluster("iad", ("i-1:9093", "i-2:9093"), tls, sasl), sources, "im", 3)


@pytest.mark.parametrize(
    ("tls", "sasl", "shown"),
    [(False, False, Credentials()), (True, False, TLS), (True, True, USER)],
)
def test_strimzi_takes_our_mirrormaker(
    with_crds: ApiServer, tls: bool, sasl: bool, shown: Credentials
) -> None:
    made = json.dumps(strimzi.strimzi(flows(tls, sasl), shown, SECRET))
    assert "created" in with_crds.kubectl(*REHEARSE, given=made)


def rendered(folder: Path, *flags: str) -> str:
    """What `imctl engines render` prints for an IDC with all engines that it knows."""
    document = yaml.safe_load(THREE.read_text())
    for idc in document["spec"]["idcs"]:
        name = idc["name"]
        kafka: dict[str, Any] = {"brokers": [f"{name}-kafka-bootstrap.im-{name}:9093"]}
        kafka |= {key: f"/etc/imctl/kafka/{key}" for key in ("ca_file", "cert_file", "key_file")}
        tikv = {"pd": [f"{name}-pd.im-{name}:2379"]}
        idc["engines"] = {
            "log": {"kafka": kafka}, "mirror": {"mirrormaker2": {}}, "kv": {"tikv": tikv},
        }  # fmt: skip
    file = folder / "region.yaml"
    file.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        [IMCTL, "engines", "render", file, "--idc", "fra", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--brokers", "9", "--storage-class", "fast", "--broker-disk", "2T"),
        ("--listener", "nodeport", "--no-tikv-tls", "--pd", "5"),
        ("--size", str(THREE.parents[1] / "docs" / "capacity-100.yaml")),
    ],
)
def test_strimzi_and_tidb_operator_take_an_idcs_engines(
    with_crds: ApiServer, namespace: str, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    made = rendered(tmp_path, *flags)
    said = with_crds.kubectl("-n", namespace, *REHEARSE, given=made).splitlines()
    kinds = [one["kind"] for one in yaml.safe_load_all(made)]
    assert {
        "Kafka", "KafkaNodePool", "KafkaUser", "KafkaTopic", "KafkaMirrorMaker2",
        "Cluster", "PDGroup", "TiKVGroup",
    } == set(kinds)  # fmt: skip
    assert len([line for line in said if " created (server dry run)" in line]) == len(kinds)


def test_they_stand_beside_each_other_and_are_applied_again(
    with_crds: ApiServer, namespace: str, tmp_path: Path
) -> None:
    """Names do not clash; and nothing that may not change differs between two runs."""
    made = rendered(tmp_path)
    apply = ("-n", namespace, "apply", "--server-side", "--validate=strict", "-f", "-")
    with_crds.kubectl(*apply, given=made)
    with_crds.kubectl(*apply, given=rendered(tmp_path, "--brokers", "5", "--stores", "4"))
    found = json.loads(with_crds.kubectl("-n", namespace, "get", "tikvgroup,kafkanodepool",
                                         "-o", "json"))["items"]  # fmt: skip
    replicas = {one["metadata"]["name"]: one["spec"]["replicas"] for one in found}
    assert replicas == {"fra": 4, "brokers": 5, "controllers": 3}


@pytest.mark.parametrize(
    ("written", "wrong", "said"),
    [
        ("replicas:", "replicass:", "replicass"),
        ("name: data", "name: else", "data volume must be configured"),  # a rule, in no schema
    ],
)
def test_the_check_is_one_that_can_fail(
    with_crds: ApiServer, namespace: str, tmp_path: Path, written: str, wrong: str, said: str
) -> None:
    made = rendered(tmp_path)
    assert written in made
    with pytest.raises(Failed, match=said):
        with_crds.kubectl("-n", namespace, *REHEARSE, given=made.replace(written, wrong))


def test_any_api_server_takes_our_own_deployment(api_server: ApiServer) -> None:
    for made in strimzi.deployment(flows(True, False), TLS, SECRET):
        assert "created" in api_server.kubectl(*REHEARSE, given=json.dumps(made))
