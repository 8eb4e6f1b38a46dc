"""Where an IDC's Kafka is, how to be let in, and what its topics are called."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from imcore.errors import BadInput
from imcore.tls import client_ssl_context
from imcore.words import Origin
from services.engines.renewed import load_pair

DEADLINE_S = 5.0
REPLICATED, FLUSH = "replicated", "flush"


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """``ca_file`` None: no TLS. ``username``: SASL SCRAM-SHA-512, over TLS only."""

    brokers: tuple[str, ...]
    prefix: str  # of the topics of this deployment in this IDC's cluster
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    username: str = ""
    password: str = field(default="", repr=False)
    replication_factor: int = 3
    min_insync_replicas: int = 2
    durability: str = REPLICATED  # or FLUSH: every message is synced before it is acked
    deadline_s: float = DEADLINE_S  # of one call, connecting included

    @property
    def tls_files(self) -> list[Path]:
        return [path for path in (self.ca_file, self.cert_file, self.key_file) if path is not None]

    def ssl_context(self) -> ssl.SSLContext | None:
        """Raises BadInput."""
        if self.ca_file is None:
            if self.username:
                raise BadInput("engines.log.kafka: username needs TLS: name a ca_file")
            return None
        context = client_ssl_context(self.ca_file)
        if self.cert_file is not None:
            load_pair(context, self.cert_file, self.key_file, "engines.log.kafka")
        return context


def own_topic(prefix: str, origin: Origin) -> str:
    """In the origin's own cluster."""
    return f"{prefix}.log.{origin.incarnation}"


def mirrored_topic(prefix: str, origin: Origin) -> str:
    """MirrorMaker's copy of it in another IDC's cluster (DefaultReplicationPolicy)."""
    return f"{origin.idc}.{own_topic(prefix, origin)}"


def relay_topic(prefix: str, origin: Origin) -> str:
    """What this IDC fetched itself from others."""
    return f"{prefix}.relay.{origin.idc}.{origin.incarnation}"


def meta_topic(prefix: str) -> str:
    return f"{prefix}.meta"


def topics_of(prefix: str, own: str, origin: Origin) -> tuple[str, str]:
    """Whose union is the log of the origin in the cluster of IDC ``own``: what the origin itself
    wrote, and the relay."""
    name = own_topic if origin.idc == own else mirrored_topic
    return name(prefix, origin), relay_topic(prefix, origin)
