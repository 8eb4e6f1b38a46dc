"""MirrorMaker 2 on Kubernetes: as Strimzi's KafkaMirrorMaker2, or as a Deployment of our own where
Strimzi is not installed. Objects only; nothing is applied, and no secret stands in them.

Both take certificates and password from one Secret, with the keys below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imcore.errors import BadInput
from imctl.engines import mm2, mm2_config, properties
from imctl.engines.mirror_watch import GIVEN_UP
from imctl.engines.mm2_config import Cluster, Credentials, Flows

CA, CERTIFICATE, KEY, PASSWORD = "ca.crt", "tls.crt", "tls.key", "password"
IMAGE = "apache/kafka:4.3.1"
HEAP_MB = 512
LOGS = Path("/var/log/mm2")
_SETTINGS = Path("/etc/mm2")
_SECRET = Path("/etc/mm2-secret")
_WORDS = {"app.kubernetes.io/name": "mirrormaker2", "app.kubernetes.io/managed-by": "imctl"}
Object = dict[str, Any]


def name_of(flows: Flows) -> str:
    return f"mm2-into-{flows.target.idc}"


def strimzi(flows: Flows, credentials: Credentials, secret: str) -> Object:
    """Raises BadInput for what Strimzi cannot express."""
    if credentials.certificate and credentials.username:
        raise BadInput(
            f"{flows.target.idc}: expected either a certificate or a user for Strimzi, got both "
            "under `log: kafka:`; --target deployment can show both"
        )
    storage = {
        f"{topic}.storage.replication.factor": flows.replication_factor
        for topic in ("offset", "status", "config")
    }
    worker = {k: v for k, v in mm2_config.worker().items() if k != "plugin.discovery"}
    spec = {
        "replicas": 1,
        "target": {
            **_cluster(flows.target, credentials, secret),
            "groupId": name_of(flows),
            "configStorageTopic": "mm2-configs",
            "statusStorageTopic": "mm2-status",
            "offsetStorageTopic": "mm2-offsets",
            "config": {**worker, **storage, **mm2_config.positions()},
        },
        "mirrors": [_mirror(source, flows, credentials, secret) for source in flows.sources],
        "jvmOptions": {"-Xmx": f"{HEAP_MB}m"},
        "resources": _resources(),
    }
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaMirrorMaker2",
        "metadata": {"name": name_of(flows), "labels": _WORDS},
        "spec": spec,
    }


def _mirror(source: Cluster, flows: Flows, credentials: Credentials, secret: str) -> Object:
    # Strimzi has no connector that makes heartbeats, and says topics and tasks in its own words.
    ours = ("topics", "groups", "tasks.max", "heartbeats.", "emit.heartbeats.", "emit.checkpoints")
    copied = {k: v for k, v in mm2_config.connector(flows).items() if not k.startswith(ours)}
    read = {f"source.consumer.{k}": v for k, v in mm2_config.consumer().items()}
    return {
        "source": _cluster(source, credentials, secret),
        "topicsPattern": flows.topics,
        "sourceConnector": {
            "tasksMax": 1,
            "autoRestart": {"enabled": True},
            "config": {**copied, **read, "exactly.once.support": "required"},
        },
    }


def _cluster(cluster: Cluster, credentials: Credentials, secret: str) -> Object:
    found: Object = {"alias": cluster.idc, "bootstrapServers": ",".join(cluster.brokers)}
    if cluster.tls:
        found["tls"] = {"trustedCertificates": [{"secretName": secret, "certificate": CA}]}
    if cluster.sasl:
        found["authentication"] = {
            "type": "scram-sha-512",
            "username": credentials.username,
            "passwordSecret": {"secretName": secret, "password": PASSWORD},
        }
    elif cluster.tls and credentials.certificate:
        pair = {"secretName": secret, "certificate": CERTIFICATE, "key": KEY}
        found["authentication"] = {"type": "tls", "certificateAndKey": pair}
    return found


def deployment(
    flows: Flows, credentials: Credentials, secret: str, image: str = IMAGE
) -> list[Object]:
    """A ConfigMap and a Deployment. Of ``credentials`` it takes what there is, not where: in the
    container all lies in the mounted Secret."""
    name = name_of(flows)
    mounted = Credentials(
        ca=_SECRET / CA,
        certificate=_SECRET / CERTIFICATE if credentials.certificate else None,
        key=_SECRET / KEY if credentials.certificate else None,
        username=credentials.username,
        password=f"${{directory:{_SECRET}:{PASSWORD}}}" if credentials.username else None,
    )
    metadata = {"name": name, "labels": _WORDS}
    files = {
        "mm2.properties": properties.text(mm2_config.settings(flows, mounted)),
        "log4j2.properties": mm2.logging(LOGS / "mm2.log"),
    }
    pod = {
        "metadata": {"labels": {**_WORDS, "app.kubernetes.io/instance": name}},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(flows, image)],
            "volumes": [
                {"name": "settings", "configMap": {"name": name}},
                {"name": "secret", "secret": {"secretName": secret, "defaultMode": 0o440}},
                {"name": "logs", "emptyDir": {"sizeLimit": "64Mi"}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
            ],
        },
    }
    spec = {
        # Two would be a group, whose members must reach each other; one is restarted fast enough.
        "replicas": 1,
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": {"app.kubernetes.io/instance": name}},
        "template": pod,
    }
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
    ]


def _container(flows: Flows, image: str) -> Object:
    alive = f"! grep -q {GIVEN_UP!r} {LOGS / 'mm2.log'}"
    return {
        "name": "mirrormaker2",
        "image": image,
        "command": [
            "/opt/kafka/bin/connect-mirror-maker.sh",
            str(_SETTINGS / "mm2.properties"),
            "--clusters",
            flows.target.idc,
        ],
        "env": [
            {"name": "KAFKA_HEAP_OPTS", "value": f"-Xmx{HEAP_MB}m"},
            {
                "name": "KAFKA_LOG4J_OPTS",
                "value": f"-Dlog4j2.configurationFile={_SETTINGS / 'log4j2.properties'}",
            },
            {"name": "LOG_DIR", "value": str(LOGS)},
        ],
        # A task that was given up stays so until the process is started again.
        "livenessProbe": {
            "exec": {"command": ["sh", "-c", alive]},
            "initialDelaySeconds": 30,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
        },
        "resources": _resources(),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "settings", "mountPath": str(_SETTINGS), "readOnly": True},
            {"name": "secret", "mountPath": str(_SECRET), "readOnly": True},
            {"name": "logs", "mountPath": str(LOGS)},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own
        ],
    }


def _resources() -> Object:
    return {
        "requests": {"cpu": "500m", "memory": f"{HEAP_MB + 256}Mi"},
        "limits": {"memory": f"{HEAP_MB + 512}Mi"},
    }
