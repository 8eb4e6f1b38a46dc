"""An IDC's Kafka on Kubernetes, as objects of Strimzi: brokers, who may do what, topics. Objects
only; nothing is applied, and no secret stands in them.

Who may do what is as on the local target (imctl.engines.kafka): every listener wants a certificate
of the region's CA, the IDC's own may do everything, another IDC's MirrorMaker may read its logs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from imcore.errors import BadInput
from imcore.pki import dns_name
from imcore.region.model import Idc, Kafka, Region
from imcore.words import Origin
from imctl.engines.kafka import MESSAGE_BYTES_MAX
from imctl.engines.machines import Layout, Machines
from services.engines.kafka import acls, admin
from services.engines.kafka.settings import (
    KafkaSettings,
    meta_topic,
    mirrored_topic,
    own_topic,
    relay_topic,
)

API = "kafka.strimzi.io/v1"
CLIENT_PORT, REMOTE_PORT = 9093, 9094
BROKERS, CONTROLLERS = "brokers", "controllers"
FIRST = 1  # incarnation; an IDC makes the topics of the next ones itself
_TOPIC_PATTERNS = {acls.LITERAL: "literal", acls.PREFIXED: "prefix"}
_OPERATIONS = {acls.READ: "Read", acls.DESCRIBE_CONFIGS: "DescribeConfigs"}
Object = dict[str, Any]


def objects(region: Region, idc: Idc, kafka: Kafka, layout: Layout, remote: str) -> list[Object]:
    """``remote``: the type of the listener for other IDCs' MirrorMakers, where there are any.
    Raises BadInput."""
    _check(idc, kafka, layout)
    readers = [
        other.name
        for other in region.spec.idcs
        if other.name != idc.name and other.engines.mirror.mirrormaker2 is not None
    ]
    return [
        _kafka(idc.name, kafka, remote if readers else None),
        _pool(idc.name, CONTROLLERS, "controller", layout.controllers, layout.storage_class),
        _pool(idc.name, BROKERS, "broker", layout.brokers, layout.storage_class),
        *(_reader(idc.name, reader, kafka.topic_prefix) for reader in readers),
        *_topics(region, idc, kafka),
    ]


def _check(idc: Idc, kafka: Kafka, layout: Layout) -> None:
    if kafka.username is not None or kafka.cert_file is None:
        got = "a username" if kafka.username is not None else "no certificate"
        raise BadInput(
            f"{idc.name}: expected `ca_file:`, `cert_file:` and `key_file:` in its `log: kafka:`, "
            f"because the brokers that are made here know clients by certificates; got {got}"
        )
    if layout.brokers.count < kafka.replication_factor:
        raise BadInput(
            f"--brokers: expected at least {kafka.replication_factor}, {idc.name}'s "
            f"`replication_factor:`, got {layout.brokers.count}"
        )


def _kafka(name: str, kafka: Kafka, remote: str | None) -> Object:
    listeners = [_listener("tls", CLIENT_PORT, "internal")]
    if remote is not None:
        listeners.append(_listener("remote", REMOTE_PORT, remote))
    spec = {
        "kafka": {
            "listeners": listeners,
            "authorization": {"type": "simple", "superUsers": [f"CN={dns_name(name)}"]},
            "config": _settings(kafka),
        },
        "entityOperator": {"topicOperator": {}, "userOperator": {}},
        # The region's, so that the certificate of one IDC serves at the brokers of all.
        "clientsCa": {"generateCertificateAuthority": False},
    }
    return {"apiVersion": API, "kind": "Kafka", "metadata": _named(name), "spec": spec}


def _listener(name: str, port: int, kind: str) -> Object:
    return {
        "name": name,
        "port": port,
        "type": kind,
        "tls": True,
        "authentication": {"type": "tls"},
    }


def _settings(kafka: Kafka) -> dict[str, str]:
    """Of the brokers: for Kafka's own topics, and MirrorMaker's, the same as for ours."""
    factor, in_sync = str(kafka.replication_factor), str(kafka.min_insync_replicas)
    return {
        "auto.create.topics.enable": "false",
        "default.replication.factor": factor,
        "min.insync.replicas": in_sync,
        "unclean.leader.election.enable": "false",
        "message.max.bytes": str(MESSAGE_BYTES_MAX),
        "offsets.topic.replication.factor": factor,
        "transaction.state.log.replication.factor": factor,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": factor,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _pool(name: str, pool: str, role: str, machines: Machines, storage_class: str | None) -> Object:
    requests = machines.requests()
    volume = {
        "id": 0,
        "type": "persistent-claim",
        "size": machines.disk,
        "kraftMetadata": "shared",
        "deleteClaim": False,
        **({"class": storage_class} if storage_class else {}),
    }
    # What two brokers hold must not be lost with one machine.
    apart = {
        "labelSelector": {
            "matchLabels": {"strimzi.io/cluster": name, "strimzi.io/pool-name": pool}
        },
        "topologyKey": "kubernetes.io/hostname",
    }
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    spec = {
        "replicas": machines.count,
        "roles": [role],
        "storage": {"type": "jbod", "volumes": [volume]},
        "resources": {"requests": requests, "limits": {"memory": requests["memory"]}},
        "template": {"pod": {"affinity": affinity}},
    }
    metadata = _named(pool, name)
    return {"apiVersion": API, "kind": "KafkaNodePool", "metadata": metadata, "spec": spec}


def _reader(name: str, reader: str, prefix: str) -> Object:
    """Another IDC, by the certificate that it has from the region's CA: Strimzi's users of that
    kind are called as in their certificates."""
    grants: dict[tuple[str, int], list[str]] = {}
    for grant in acls.of_mirrors(prefix):
        grants.setdefault((grant.topic, grant.pattern), []).append(_OPERATIONS[grant.operation])
    rules = [
        {
            "resource": {"type": "topic", "name": topic, "patternType": _TOPIC_PATTERNS[pattern]},
            "operations": operations,
        }
        for (topic, pattern), operations in grants.items()
    ]
    spec = {
        "authentication": {"type": "tls-external"},
        "authorization": {"type": "simple", "acls": rules},
    }
    metadata = _named(dns_name(reader), name)
    return {"apiVersion": API, "kind": "KafkaUser", "metadata": metadata, "spec": spec}


def _topics(region: Region, idc: Idc, kafka: Kafka) -> Iterable[Object]:
    """As the log makes them where they are missing: it finds no difference in these."""
    settings = KafkaSettings(
        brokers=tuple(kafka.brokers),
        prefix=kafka.topic_prefix,
        replication_factor=kafka.replication_factor,
        min_insync_replicas=kafka.min_insync_replicas,
        durability=kafka.durability,
    )
    own, prefix = idc.name, kafka.topic_prefix
    logs = {f"log-{FIRST}": own_topic(prefix, Origin(own, FIRST))}
    for other in region.spec.idcs:
        if other.name == own:
            continue
        origin = Origin(other.name, FIRST)
        if idc.engines.mirror.mirrormaker2 is not None:
            logs[f"copy-{other.name}-{FIRST}"] = mirrored_topic(prefix, origin)
        logs[f"relay-{other.name}-{FIRST}"] = relay_topic(prefix, origin)
    yield _topic(own, "meta", admin.meta(meta_topic(prefix), settings))
    for name, topic in logs.items():
        yield _topic(own, name, admin.log_topic(topic, region.spec.partitions, settings))


def _topic(idc: str, name: str, topic: admin.Topic) -> Object:
    """Named by what it is: a topic may have letters that an object's name may not."""
    spec = {
        "topicName": topic.name,
        "partitions": topic.partitions,
        "replicas": topic.replication_factor,
        "config": dict(topic.settings),
    }
    metadata = _named(f"{idc}-{name}", idc)
    return {"apiVersion": API, "kind": "KafkaTopic", "metadata": metadata, "spec": spec}


def _named(name: str, cluster: str | None = None) -> Object:
    """``cluster``: the Kafka that it belongs to."""
    labels = {"app.kubernetes.io/managed-by": "imctl"}
    if cluster is not None:
        labels["strimzi.io/cluster"] = cluster
    return {"name": name, "labels": labels}
