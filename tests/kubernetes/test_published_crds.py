"""Objects that we make for other operators are taken by a real API server with their CRDs.

Of Strimzi's kinds we make KafkaMirrorMaker2 and of TiDB Operator's none: IDCs use engines that run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imctl.engines import strimzi
from imctl.engines.mm2_config import Cluster, Credentials, Flows
from imctl.errors import Failed
from imctl.testing.cluster.cluster import Cluster as ApiServer
from imctl.testing.cluster.lab import until_known

CRDS = Path(__file__).parents[3] / "shared" / "crds"
SECRET = "kafka-client"
TLS = Credentials(Path("/k/ca.pem"), Path("/k/c.pem"), Path("/k/c.key"))
USER = Credentials(Path("/k/ca.pem"), username="im", password="${file:/m/s:password}")


@pytest.fixture(scope="module")
def with_strimzi(api_server: ApiServer) -> ApiServer:
    file = CRDS / "strimzi-kafkamirrormaker2.yaml"
    if not file.exists():
        pytest.skip("not run: Strimzi's published CRDs are not beside this checkout")
    api_server.kubectl("apply", "--server-side", "-f", str(file))
    until_known(api_server, "kafkamirrormaker2s")
    return api_server


def flows(tls: bool, sasl: bool) -> Flows:
    sources = tuple(Cluster(name, (f"{name}:9093",), tls, sasl) for name in ("fra", "sin"))
    return Flows(Cluster("iad", ("i-1:9093", "i-2:9093"), tls, sasl), sources, "im", 3)


@pytest.mark.parametrize(
    ("tls", "sasl", "shown"),
    [(False, False, Credentials()), (True, False, TLS), (True, True, USER)],
)
def test_strimzi_takes_our_mirrormaker(
    with_strimzi: ApiServer, tls: bool, sasl: bool, shown: Credentials
) -> None:
    made = json.dumps(strimzi.strimzi(flows(tls, sasl), shown, SECRET))
    create = ("create", "--dry-run=server", "--validate=strict", "-f", "-")
    assert "created" in with_strimzi.kubectl(*create, given=made)


def test_the_check_is_one_that_can_fail(with_strimzi: ApiServer) -> None:
    made = strimzi.strimzi(flows(True, False), TLS, SECRET)
    made["spec"]["replicass"] = 1
    with pytest.raises(Failed, match="replicass"):
        with_strimzi.kubectl(
            "create", "--dry-run=server", "--validate=strict", "-f", "-", given=json.dumps(made)
        )


def test_any_api_server_takes_our_own_deployment(api_server: ApiServer) -> None:
    for made in strimzi.deployment(flows(True, False), TLS, SECRET):
        created = api_server.kubectl(
            "create", "--dry-run=server", "--validate=strict", "-f", "-", given=json.dumps(made)
        )
        assert "created" in created
