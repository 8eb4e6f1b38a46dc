"""MirrorMaker 2's objects for Kubernetes, against the schema that Strimzi publishes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imcore.errors import BadInput
from imctl.engines import mm2_check, properties, strimzi
from imctl.engines.mm2_config import Cluster, Credentials, Flows
from imctl.testing import published

SCHEMA = Path(__file__).parent / "strimzi" / "kafkamirrormaker2.yaml"
SECRET = "kafka-client"
TLS = Credentials(Path("/k/ca.pem"), Path("/k/c.pem"), Path("/k/c.key"))
USER = Credentials(Path("/k/ca.pem"), username="im", password="${file:/m/s:password}")


def flows(tls: bool = True, sasl: bool = False) -> Flows:
    return Flows(
        Cluster("iad", ("i-1:9093", "i-2:9093"), tls, sasl),
        (Cluster("fra", ("f:9093",), tls, sasl), Cluster("sin", ("s:9093",), tls, sasl)),
        "im",
        3,
    )


@pytest.fixture(scope="module")
def schema() -> Any:
    found = yaml.safe_load(SCHEMA.read_text())
    found["properties"]["metadata"] = {"type": "object"}
    strict_schema = published.strict(found)
    strict_schema["properties"]["metadata"].pop("additionalProperties", None)
    return strict_schema


@pytest.mark.parametrize(
    ("made", "shown"), [((False, False), Credentials()), ((True, False), TLS), ((True, True), USER)]
)
def test_strimzi_takes_it(made: tuple[bool, bool], shown: Credentials, schema: Any) -> None:
    jsonschema.validate(strimzi.strimzi(flows(*made), shown, SECRET), schema)


def test_the_schema_would_refuse_what_is_wrong(schema: Any) -> None:
    found = strimzi.strimzi(flows(), TLS, SECRET)
    found["spec"]["mirrors"][0]["sourceConector"] = {}
    with pytest.raises(jsonschema.ValidationError, match="sourceConector"):
        jsonschema.validate(found, schema)
    found = strimzi.strimzi(flows(), TLS, SECRET)
    del found["spec"]["target"]["groupId"]
    with pytest.raises(jsonschema.ValidationError, match="groupId"):
        jsonschema.validate(found, schema)


def test_no_setting_is_one_that_strimzi_keeps_to_itself(schema: Any) -> None:
    spec = schema["properties"]["spec"]["properties"]
    words = spec["target"]["properties"]["config"]["description"]
    listed = re.search(r"cannot be set: (.*?) \(with the exception", words)
    assert listed is not None
    forbidden = tuple(listed[1].split(", "))
    assert "group.id" in forbidden
    made = strimzi.strimzi(flows(), TLS, SECRET)["spec"]
    assert not [key for key in made["target"]["config"] if key.startswith(forbidden)]
    for mirror in made["mirrors"]:
        config = mirror["sourceConnector"]["config"]
        assert not {"name", "connector.class", "tasks.max", "topics"} & set(config)


def test_strimzi_keeps_the_promises_that_dedicated_mode_keeps() -> None:
    spec = strimzi.strimzi(flows(), TLS, SECRET)["spec"]
    assert spec["target"]["alias"] == "iad"
    assert spec["target"]["config"]["exactly.once.source.support"] == "enabled"
    assert spec["target"]["config"]["producer.transaction.timeout.ms"] == "10000"
    assert [mirror["source"]["alias"] for mirror in spec["mirrors"]] == ["fra", "sin"]
    for mirror in spec["mirrors"]:
        assert mirror["topicsPattern"] == r"im\.log\.[0-9]+"
        config = mirror["sourceConnector"]["config"]
        assert config["exactly.once.support"] == "required"
        assert config["source.consumer.isolation.level"] == "read_committed"
        assert config["replication.policy.class"].endswith(".DefaultReplicationPolicy")
        assert config["sync.topic.configs.enabled"] == "false"
        assert config["replication.factor"] == "3"


def test_strimzi_cannot_show_a_certificate_and_a_password() -> None:
    both = replace(TLS, username="im", password="${file:/m/s:p}")
    with pytest.raises(BadInput, match=r"^iad: expected either .* --target deployment"):
        strimzi.strimzi(flows(sasl=True), both, SECRET)


def test_our_own_deployment_mounts_what_its_settings_name() -> None:
    config_map, deployment = strimzi.deployment(flows(sasl=True), USER, SECRET)
    found = properties.parsed(config_map["data"]["mm2.properties"])
    assert mm2_check.problems(found, flows(sasl=True)) == []
    assert "password" not in re.sub(r"\$\{[^}]*\}|password=", "", str(config_map["data"]))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert set(mounts) == {one["name"] for one in pod["volumes"]}
    assert found["iad.ssl.truststore.location"] == f"{mounts['secret']}/ca.crt"
    assert f"${{directory:{mounts['secret']}:password}}" in found["fra.sasl.jaas.config"]
    assert f"{mounts['settings']}/mm2.properties" in container["command"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert deployment["spec"]["replicas"] == 1
