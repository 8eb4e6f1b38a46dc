"""One single-node Kafka (KRaft: broker and controller in one) as a process on this machine: its
properties, its storage, its command line, and whether it serves.

Who may do what: every listener wants a certificate of the region's CA. The broker's own name and
the IDC's are super users; another IDC, whose MirrorMaker fetches from here, may only read what
``services.engines.kafka.acls`` grants it, and everybody else nothing.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
import struct
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imcore.errors import BadInput
from imcore.pki import dns_name
from imcore.tls import client_ssl_context
from imctl.engines import jvm
from imctl.errors import Failed

HEAP_MB = 256
FORMAT_S = 60.0
CLIENT = "CLIENT"
CONTROLLER = "CONTROLLER"
MESSAGE_BYTES_MAX = 17 << 20  # of one batch, wherever a topic does not say it
_METADATA = struct.pack(">hhih", 3, 1, 1, -1) + struct.pack(">i", 0)  # of no topic: the brokers


def principal(name: str) -> str:
    """As Kafka calls who presents the certificate of that name."""
    return f"User:CN={dns_name(name)}"


def _new_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class Listener:
    """``advertised``: where its clients really reach it, when that is elsewhere (a link proxy)."""

    address: str
    advertised: str


@dataclass(frozen=True, slots=True)
class Server:
    """``certificate``: the name of its own in the pki folder. ``client``: the IDC that it serves.
    ``remote``: IDC -> where that IDC's MirrorMaker reaches this broker. ``over``: settings that
    stand above its own, and ``format``: what its storage is formatted with besides."""

    data: Path
    address: str
    controller: str
    pki: Path
    certificate: str
    client: str
    remote: Mapping[str, Listener] = field(default_factory=dict)
    partitions: int = 3  # of topics that do not say it
    flush: bool = False  # every message of every topic is synced before it is acked
    over: Mapping[str, str] = field(default_factory=dict)
    format: Sequence[str] = ()
    cluster_id: str = field(default_factory=_new_id)  # for a new storage; one for all its brokers

    @property
    def properties_file(self) -> Path:
        return self.data / "server.properties"

    # --------------------------------------------------------------------------- settings

    def properties(self) -> dict[str, str]:
        remote = {f"FOR_{_upper(idc)}": at for idc, at in self.remote.items()}
        listeners = {CLIENT: self.address, **{name: at.address for name, at in remote.items()}}
        advertised = {
            CLIENT: self.address,
            **{name: at.advertised for name, at in remote.items()},
        }
        every = {**listeners, CONTROLLER: self.controller}
        supers = ";".join(principal(name) for name in (self.certificate, self.client))
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{self.controller}",
            "controller.listener.names": CONTROLLER,
            "inter.broker.listener.name": CLIENT,
            "listeners": _pairs(every),
            "advertised.listeners": _pairs(advertised),
            "listener.security.protocol.map": ",".join(f"{name}:SSL" for name in every),
            "log.dirs": str(self.data / "logs"),
            # Who it is, and whom it lets in.
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.data / "keystore.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.pki / "ca.pem"),
            "ssl.client.auth": "required",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": supers,
            "allow.everyone.if.no.acl.found": "false",
            # After a kill it may come back only once its last session is over: default 9 s.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "500",
            # A single node.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "3",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "3",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "num.partitions": str(self.partitions),
            "auto.create.topics.enable": "false",
            "message.max.bytes": str(MESSAGE_BYTES_MAX),
            "group.initial.rebalance.delay.ms": "0",
            # Sized for a machine that runs several.
            "num.network.threads": "2",
            "num.io.threads": "3",
            "num.replica.fetchers": "1",
            "num.recovery.threads.per.data.dir": "1",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": "4194304",
            "log.cleaner.threads": "1",
            "offsets.topic.segment.bytes": "4194304",
            "transaction.state.log.segment.bytes": "4194304",
            "log.segment.bytes": "67108864",
            "log.index.size.max.bytes": "1048576",
            "remote.log.storage.system.enable": "false",
            "transaction.partition.verification.enable": "true",
            "controlled.shutdown.enable": "true",
            **({"log.flush.interval.messages": "1"} if self.flush else {}),
            **self.over,
        }

    # ---------------------------------------------------------------------------- storage

    def prepare(self, lib: Path) -> None:
        """Writes its files, and formats its storage when it is new. Raises Failed."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            keystore = self.data / "keystore.pem"
            keystore.unlink(missing_ok=True)
            with open(os.open(keystore, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write((self.pki / f"{self.certificate}.key").read_bytes())
                file.write((self.pki / f"{self.certificate}.pem").read_bytes())
            lines = [f"{key}={value}" for key, value in self.properties().items()]
            self.properties_file.write_text("\n".join(lines) + "\n")
        except OSError as error:
            raise Failed(f"kafka of {self.client} cannot be set up: {error}") from error
        if not (self.data / "logs" / "meta.properties").exists():
            self._format(lib)

    def _format(self, lib: Path) -> None:
        tool = ["kafka.tools.StorageTool", "format", f"--cluster-id={self.cluster_id}"]
        tool += ["-c", str(self.properties_file), *self.format]
        try:
            done = subprocess.run(
                self._java(lib, tool), capture_output=True, text=True, timeout=FORMAT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"formatting {self.data} took more than {FORMAT_S:g} s") from None
        if done.returncode != 0:
            said = jvm.reason(done.stderr or done.stdout)
            raise Failed(f"kafka's storage in {self.data} cannot be formatted: {said}")

    def command(self, lib: Path, record: Path | None = None) -> list[str]:
        """``lib``, ``record``: see jvm.py. Raises Failed."""
        return self._java(lib, ["kafka.Kafka", str(self.properties_file)], record)

    def _java(self, lib: Path, arguments: list[str], record: Path | None = None) -> list[str]:
        return jvm.command(lib, "broker", HEAP_MB, arguments, record)

    # ----------------------------------------------------------------------------- health

    def healthy(self, timeout_s: float = 1.0) -> bool:
        """Whether it is a registered broker and answers; never raises."""
        host, _, port = self.address.rpartition(":")
        try:
            context = client_ssl_context(self.pki / "ca.pem")
            context.load_cert_chain(
                self.pki / f"{self.client}.pem", self.pki / f"{self.client}.key"
            )
            with (
                socket.create_connection((host, int(port)), timeout_s) as plain,
                context.wrap_socket(plain, server_hostname=host) as connection,
            ):
                connection.sendall(struct.pack(">i", len(_METADATA)) + _METADATA)
                (size,) = struct.unpack(">i", _exactly(connection, 4))
                _, brokers = struct.unpack_from(">ii", _exactly(connection, size))
                return bool(brokers > 0)
        except (OSError, ValueError, BadInput, struct.error):
            return False


def _exactly(connection: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise ConnectionError("the broker closed the connection")
        data += piece
    return data


def _pairs(addresses: Mapping[str, str]) -> str:
    return ",".join(f"{name}://{address}" for name, address in addresses.items())


def _upper(idc: str) -> str:
    """Listener names are upper case, and know no dashes."""
    return idc.upper().replace("-", "_")
