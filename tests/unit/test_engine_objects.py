"""The objects of an IDC's engines for Strimzi and TiDB Operator: as golden files, and against the
schemas that those publish.

After a change that is meant: `REWRITE_GOLDEN=1 pytest tests/unit/test_engine_objects.py`, and read
the difference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.capacity.inputs import Workload
from imctl.capacity.model import size
from imctl.commands.size import default_figures
from imctl.engines import rendering
from imctl.engines.machines import Layout, Machines
from imctl.engines.rendering import Wishes
from imctl.testing import golden, published
from services.engines.kafka import acls

GOLDEN = Path(__file__).parent / "engines_golden"
REGION = Path(__file__).parents[2] / "regions" / "three-idc.yaml"
CRDS = Path(__file__).parents[3] / "shared" / "crds"
USUAL = Wishes(Layout(), "kafka-client", "loadbalancer", "v8.5.2", tikv_tls=True)
OTHER = Wishes(
    Layout(brokers=Machines(5, 8, 32, "16T"), storage_class="fast"),
    "mirror",
    "nodeport",
    "8.5.3",
    tikv_tls=False,
)
# Strimzi keeps these settings of brokers to itself (its KafkaClusterSpec).
FORBIDDEN = (
    "listeners", "advertised.", "broker.", "listener.", "host.name", "port",
    "inter.broker.listener.name", "sasl.", "ssl.", "security.", "password.", "log.dir",
    "authorizer.", "super.user", "node.id", "process.roles", "controller.", "metadata.log.dir",
)  # fmt: skip


def region(**engines: Any) -> Region:
    """Every IDC on Kafka, MirrorMaker 2 and TiKV; ``engines``: of the first one, instead."""
    document = yaml.safe_load(REGION.read_text())
    for idc in document["spec"]["idcs"]:
        name = idc["name"]
        kafka: dict[str, Any] = {"brokers": [f"{name}-kafka-bootstrap.im-{name}:9093"]}
        kafka |= {key: f"/etc/imctl/kafka/{key}" for key in ("ca_file", "cert_file", "key_file")}
        idc["engines"] = {
            "log": {"kafka": kafka},
            "mirror": {"mirrormaker2": {}},
            "kv": {"tikv": {"pd": [f"{name}-pd.im-{name}:2379"]}},
        }
    document["spec"]["idcs"][0]["engines"] |= engines
    return Region.model_validate(document)


def plain(**more: Any) -> dict[str, Any]:
    """Of a log on Kafka."""
    kafka = {"brokers": ["k:9093"], "ca_file": "/ca", "cert_file": "/c", "key_file": "/k"}
    return {"kafka": kafka | more}


CASES: dict[str, tuple[Region, Wishes]] = {
    "usual": (region(), USUAL),
    "other": (
        region(log=plain(topic_prefix="Chat-1", durability="flush"), mirror="embedded"),
        OTHER,
    ),
    "only-tikv": (region(log="embedded", mirror="embedded"), USUAL),
}
EVERY = pytest.mark.parametrize("case", CASES)


def made(case: str) -> list[dict[str, Any]]:
    of, wishes = CASES[case]
    return rendering.objects(of, "fra", wishes)


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [each for each in found if each["kind"] == kind]


@EVERY
def test_they_are_as_they_were_read_and_found_good(case: str) -> None:
    golden.check(yaml.safe_dump_all(made(case), sort_keys=False), GOLDEN / f"{case}.yaml")


# -------------------------------------------------------------------------- published schemas


@pytest.fixture(scope="module")
def schemas() -> published.Schemas:
    if not CRDS.exists():
        pytest.skip("not run: Strimzi's and TiDB Operator's published CRDs are not beside this")
    return published.schemas(CRDS)


@EVERY
def test_the_published_schemas_take_them(case: str, schemas: published.Schemas) -> None:
    for each in made(case):
        published.check(each, schemas)


def test_the_schemas_would_refuse_what_is_wrong(schemas: published.Schemas) -> None:
    for each in made("usual"):
        each["spec"]["replicass"] = 1
        with pytest.raises(jsonschema.ValidationError, match="replicass"):
            published.check(each, schemas)


# ---------------------------------------------------------------------------- what must hold


@EVERY
def test_no_setting_is_one_that_strimzi_keeps_to_itself(case: str) -> None:
    for kafka in of_kind(made(case), "Kafka"):
        assert not [key for key in kafka["spec"]["kafka"]["config"] if key.startswith(FORBIDDEN)]


@EVERY
def test_nobody_is_let_in_without_a_certificate(case: str) -> None:
    for kafka in of_kind(made(case), "Kafka"):
        for listener in kafka["spec"]["kafka"]["listeners"]:
            assert listener["tls"] is True
            assert listener["authentication"] == {"type": "tls"}
        assert kafka["spec"]["kafka"]["authorization"]["type"] == "simple"


def test_other_idcs_may_read_what_the_local_target_lets_them_read() -> None:
    users = of_kind(made("usual"), "KafkaUser")
    assert [user["metadata"]["name"] for user in users] == [
        "iad.imctl.internal", "sin.imctl.internal",
    ]  # fmt: skip
    for user in users:
        rules = user["spec"]["authorization"]["acls"]
        granted = {
            (rule["resource"]["name"], rule["resource"]["patternType"], operation)
            for rule in rules
            for operation in rule["operations"]
        }
        patterns = {acls.LITERAL: "literal", acls.PREFIXED: "prefix"}
        operations = {acls.READ: "Read", acls.DESCRIBE_CONFIGS: "DescribeConfigs"}
        assert granted == {
            (topic, patterns[pattern], operations[operation])
            for topic, pattern, operation in acls.of_mirrors("im")
        }


def test_an_idc_from_which_nobody_mirrors_has_no_listener_for_them() -> None:
    of = region()
    alone = [
        idc.model_copy(
            update={"engines": idc.engines.model_copy(
                update={"mirror": type(idc.engines.mirror).model_construct()})}
        )
        for idc in of.spec.idcs
    ]  # fmt: skip
    of = of.model_copy(update={"spec": of.spec.model_copy(update={"idcs": alone})})
    found = rendering.objects(of, "fra", USUAL)
    (kafka,) = of_kind(found, "Kafka")
    assert [one["name"] for one in kafka["spec"]["kafka"]["listeners"]] == ["tls"]
    assert not of_kind(found, "KafkaUser")
    assert not of_kind(found, "KafkaMirrorMaker2")
    topics = [one["spec"]["topicName"] for one in of_kind(found, "KafkaTopic")]
    assert topics == ["im.meta", "im.log.1", "im.relay.iad.1", "im.relay.sin.1"]


def test_brokers_and_stores_are_as_many_and_as_large_as_size_says() -> None:
    workload = Workload.model_validate({"daily_users": "10M", "messages_per_user": 60})
    figures = default_figures()
    layout = Layout().for_workload(workload, figures)
    brokers, stores = size(workload, figures).engines
    assert layout.brokers == Machines(brokers.per_idc, 8, 32, "16000G")
    assert layout.stores == Machines(stores.per_idc, 16, 64, "4000G")
    assert layout.pd == Layout().pd


@pytest.mark.parametrize(
    ("of", "wishes", "said"),
    [
        (region(log="embedded", mirror="embedded", kv="embedded"), USUAL, "fra: expected `log:"),
        (region(log=plain(username="im")), USUAL, "got a username"),
        (region(log={"kafka": {"brokers": ["k:9092"]}}), USUAL, "got no certificate"),
        (region(log=plain(replication_factor=5)), USUAL, "--brokers: expected at least 5"),
        (
            region(),
            replace(USUAL, layout=Layout(stores=Machines(2, 1, 1, "1Gi"))),
            "--stores: expected at least 3",
        ),
        (region(), replace(USUAL, tikv_version="latest"), "--tikv-version: .* got 'latest'"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(of: Region, wishes: Wishes, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        rendering.objects(of, "fra", wishes)
