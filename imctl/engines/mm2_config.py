"""MirrorMaker 2 in dedicated mode: which flows lead into an IDC, and its settings.

One MirrorMaker serves one target IDC and runs in it: it only reads from the other IDCs' clusters,
and writes copies, its positions and its heartbeats into its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imcore.errors import BadInput
from imcore.region.model import Idc, Kafka, Region
from imctl.engines import properties
from imctl.engines.kafka import MESSAGE_BYTES_MAX

POLICY = "org.apache.kafka.connect.mirror.DefaultReplicationPolicy"
_PROVIDERS = "org.apache.kafka.common.config.provider"
REFRESH_S = 2  # a new incarnation's topic is copied after at most so long, plus a restart of tasks
HEARTBEAT_S = 3  # each is a transaction in the target, and one more in every IDC that copies it
TRANSACTION_MS = 10_000  # readers of a killed MirrorMaker's open transaction wait this long
SESSION_MS = 6_000
FLUSH_MS = 1_000
FETCH_BYTES = 4 << 20  # of one partition: a WAN link is filled, and the heap is not
DISCOVERY = {"plugin.discovery": "service_load"}
SEGMENT_BYTES = 16 << 20  # of the positions: compacted by whole segments, read whole at a start


@dataclass(frozen=True, slots=True)
class Pace:
    """How often is done what costs brokers and workers the more the less there is to copy.
    ``own_fetch_ms``: between looks at the workers' own topics; a start makes some six in turn.
    ``fetch_bytes``, ``fetch_ms``: what a fetch from a source waits for, and for how long.
    ``boundary_ms``: between transactions; so much later than it could be a record is copied."""

    own_fetch_ms: int = 500
    fetch_bytes: int = 1
    fetch_ms: int = 500
    boundary_ms: int = 50


USUAL = Pace()
# All IDCs on one machine. At rest, looks at workers' own topics are most of what a broker answers;
# and each of ten messages a second would be fetched, and be a transaction, of its own.
SMALL_MACHINE = Pace(own_fetch_ms=1_500, fetch_bytes=64 << 10, fetch_ms=250, boundary_ms=250)


@dataclass(frozen=True, slots=True)
class Cluster:
    """An IDC's Kafka, as the MirrorMaker reaches it."""

    idc: str
    brokers: tuple[str, ...]
    tls: bool
    sasl: bool


@dataclass(frozen=True, slots=True)
class Credentials:
    """What MirrorMaker shows to all clusters: the target IDC's own. ``password``: an expression
    that a config provider resolves, never the password itself."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None  # unencrypted PKCS #8, as `imctl pki init` makes it
    username: str | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Flows:
    """All flows into one IDC."""

    target: Cluster
    sources: tuple[Cluster, ...]
    prefix: str  # of topics
    replication_factor: int  # of what is made in the target

    @property
    def topics(self) -> str:
        """A regular expression (matched as a whole): the own logs of an IDC, whatever the
        incarnation. Never a copy, a relay or what an IDC keeps for itself."""
        return self.prefix.replace(".", r"\.") + r"\.log\.[0-9]+"

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        return (self.target, *self.sources)


# ------------------------------------------------------------------------- from the region


def flows_into(region: Region, name: str) -> Flows:
    """Raises BadInput."""
    try:
        target = region.idc(name)
    except KeyError:
        known = ", ".join(idc.name for idc in region.spec.idcs)
        raise BadInput(f"IDC: expected one of {known}, got {name!r}") from None
    mirror = target.engines.mirror.mirrormaker2
    if mirror is None:
        raise BadInput(
            f"{name}: expected `mirror: {{mirrormaker2: {{}}}}` under its engines, got the "
            "embedded mirror, which needs no settings"
        )
    own = _kafka(target)
    sources = []
    for idc in region.spec.idcs:
        if idc.name == name:
            continue
        other = _kafka(idc)
        brokers = mirror.remote_brokers.get(idc.name, other.brokers)
        sources.append(_cluster(idc.name, other, brokers))
    flows = Flows(
        _cluster(name, own, own.brokers), tuple(sources), own.topic_prefix, own.replication_factor
    )
    _check_credentials(flows, own)
    return flows


def _kafka(idc: Idc) -> Kafka:
    kafka = idc.engines.log.kafka
    if kafka is None:
        raise BadInput(f"{idc.name}: expected a log on Kafka, which MirrorMaker 2 needs everywhere")
    return kafka


def _cluster(name: str, kafka: Kafka, brokers: list[str]) -> Cluster:
    return Cluster(name, tuple(brokers), kafka.ca_file is not None, kafka.username is not None)


def _check_credentials(flows: Flows, own: Kafka) -> None:
    """It shows the target's own files everywhere, so the target must have what a source wants."""
    for cluster in flows.sources:
        for wanted, field, have in (
            (cluster.tls, "ca_file", own.ca_file),
            (cluster.sasl, "username", own.username),
        ):
            if wanted and have is None:
                raise BadInput(
                    f"{flows.target.idc}: expected `{field}:` in its `log: kafka:`, because the "
                    f"brokers of {cluster.idc} want it of {flows.target.idc}'s MirrorMaker"
                )


def credentials_of(region: Region, name: str, secrets: Path) -> Credentials:
    """As the region file says; the password lies in a properties file of our own, ``secrets``
    (what a config provider reads must be without a line's end, and quoted)."""
    kafka = _kafka(region.idc(name))
    return Credentials(
        _path(kafka.ca_file),
        _path(kafka.cert_file),
        _path(kafka.key_file),
        kafka.username,
        f"${{file:{secrets}:password}}" if kafka.username else None,
    )


def password_file(region: Region, name: str) -> Path | None:
    return _path(_kafka(region.idc(name)).password_file)


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def secrets_text(password_file: Path) -> str:
    """Of the properties file that holds the password, quoted for where it is used. Raises
    BadInput, which never repeats it."""
    try:
        lines = password_file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "something that is not UTF-8"
        raise BadInput(f"{password_file}: expected a file with a password, got {why}") from error
    if not lines or not lines[0]:
        raise BadInput(f"{password_file}: expected a password on its first line, got none")
    return properties.text({"password": re.sub(r'(["\\])', r"\\\1", lines[0])})


# ------------------------------------------------------------------------------- settings


def settings(flows: Flows, credentials: Credentials, pace: Pace = USUAL) -> dict[str, str]:
    """All of them, for one MirrorMaker process (``--clusters TARGET``)."""
    target = flows.target.idc
    # Discovery of plugins for MirrorMaker's own config providers too, which read the name without a
    # prefix: else it scans all archives first, for 3 of the 4.8 s of CPU that a start takes.
    found = {"clusters": ",".join(cluster.idc for cluster in flows.clusters)} | DISCOVERY
    for cluster in flows.clusters:
        found |= _client(cluster, credentials)
    for source in flows.sources:
        found[f"{source.idc}->{target}.enabled"] = "true"
    found |= connector(flows, pace)
    for source in flows.sources:
        found |= _prefixed(source.idc, {f"consumer.{k}": v for k, v in consumer(pace).items()})
    found |= _prefixed(target, worker(pace))
    for topic in ("offset", "status", "config"):
        found[f"{topic}.storage.replication.factor"] = str(flows.replication_factor)
    found |= positions()
    found["status.storage.partitions"] = "1"
    if credentials.certificate or credentials.password:
        found |= {
            "config.providers": "file,directory",
            "config.providers.file.class": f"{_PROVIDERS}.FileConfigProvider",
            "config.providers.directory.class": f"{_PROVIDERS}.DirectoryConfigProvider",
        }
    return found


def connector(flows: Flows, pace: Pace = USUAL) -> dict[str, str]:
    """What copies, and how."""
    factor = str(flows.replication_factor)
    return {
        "replication.policy.class": POLICY,
        "topics": flows.topics,
        "groups": "",
        "tasks.max": "1",
        # Else each poll, of a record or two, is a transaction of its own: several requests, and a
        # mark in every partition.
        "transaction.boundary": "interval",
        "transaction.boundary.interval.ms": str(pace.boundary_ms),
        # A copy is made with the partitions and the settings of the log that it copies, but in
        # as many replicas as the target wants; from then on its settings are the target's own.
        "replication.factor": factor,
        "sync.topic.configs.enabled": "false",
        "sync.topic.acls.enabled": "false",
        "refresh.topics.interval.seconds": str(REFRESH_S),
        # Positions in copies are the readers' own; groups stay where they are.
        "sync.group.offsets.enabled": "false",
        "emit.checkpoints.enabled": "false",
        "emit.offset-syncs.enabled": "false",  # refused beside any other setting of offset-syncs
        "checkpoints.topic.replication.factor": factor,
        "emit.heartbeats.enabled": "true",
        "emit.heartbeats.interval.seconds": str(HEARTBEAT_S),
        "heartbeats.topic.replication.factor": factor,
    }


def consumer(pace: Pace = USUAL) -> dict[str, str]:
    """Of a source's records."""
    return {
        "isolation.level": "read_committed",
        "auto.offset.reset": "earliest",
        "fetch.min.bytes": str(pace.fetch_bytes),
        "fetch.max.wait.ms": str(pace.fetch_ms),
        "max.partition.fetch.bytes": str(FETCH_BYTES),  # a larger record comes alone
        "max.poll.records": "2000",
        "metadata.max.age.ms": "5000",
        "reconnect.backoff.max.ms": "500",
    }


def worker(pace: Pace = USUAL) -> dict[str, str]:
    """Of the group of workers, which lives in the target."""
    return DISCOVERY | {
        "exactly.once.source.support": "enabled",
        "offset.flush.interval.ms": str(FLUSH_MS),
        # Of the workers' own topics, which some ten readers of each flow follow: else every
        # transaction wakes all of them: most of a broker's fetches at rest.
        **{
            f"{reader}fetch.{name}": str(value)
            for reader in ("", "consumer.")  # the worker's; its connectors' and their tasks'
            for name, value in (("min.bytes", 1 << 20), ("max.wait.ms", pace.own_fetch_ms))
        },
        "scheduled.rebalance.max.delay.ms": "0",
        "session.timeout.ms": str(SESSION_MS),
        "heartbeat.interval.ms": str(SESSION_MS // 3),
        "producer.transaction.timeout.ms": str(TRANSACTION_MS),
        "producer.acks": "all",
        "producer.linger.ms": "0",
        "producer.buffer.memory": str(2 * MESSAGE_BYTES_MAX),
        "producer.max.request.size": str(MESSAGE_BYTES_MAX),
        "producer.reconnect.backoff.max.ms": "500",
    }


def positions() -> dict[str, str]:
    """Of the topic that holds them: one partition, in the order of the transactions."""
    return {
        "offset.storage.partitions": "1",
        "offset.storage.segment.bytes": str(SEGMENT_BYTES),
    }


def _client(cluster: Cluster, credentials: Credentials) -> dict[str, str]:
    found = {"bootstrap.servers": ",".join(cluster.brokers)}
    if cluster.tls:
        found["security.protocol"] = "SASL_SSL" if cluster.sasl else "SSL"
        found["ssl.truststore.type"] = "PEM"
        found["ssl.truststore.location"] = str(credentials.ca)
        if credentials.certificate and credentials.key:
            found["ssl.keystore.type"] = "PEM"
            found["ssl.keystore.certificate.chain"] = _content(credentials.certificate)
            found["ssl.keystore.key"] = _content(credentials.key)
    if cluster.sasl:
        found["sasl.mechanism"] = "SCRAM-SHA-512"
        found["sasl.jaas.config"] = (
            "org.apache.kafka.common.security.scram.ScramLoginModule required "
            f'username="{credentials.username}" password="{credentials.password}";'
        )
    return _prefixed(cluster.idc, found)


def _content(path: Path) -> str:
    """Kafka wants both parts of a PEM key store as values, and reads them from their files."""
    return f"${{directory:{path.parent}:{path.name}}}"


def _prefixed(idc: str, found: Mapping[str, str]) -> dict[str, str]:
    return {f"{idc}.{key}": value for key, value in found.items()}
