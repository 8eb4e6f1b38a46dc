"""One single-node etcd as a process on this machine: its command line, and whether it serves."""

from __future__ import annotations

import http.client
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from imcore.errors import BadInput
from imcore.pki import dns_name
from imcore.tls import client_ssl_context

HISTORY_REVISIONS = 10_000  # as many changes as the embedded registry remembers
QUOTA_BYTES = 256 << 20  # a registry holds kilobytes; a leak shows before the disk is full


@dataclass(frozen=True, slots=True)
class Server:
    """``certificate``: the name of its own in the pki folder. ``client``: the one name whose
    certificate it accepts (every IDC's is of the same CA, and only one has business here)."""

    name: str
    data: Path
    address: str
    pki: Path
    certificate: str
    client: str
    quota_bytes: int = QUOTA_BYTES

    def command(self, binary: Path) -> list[str]:
        own, key, ca = (
            str(self.pki / f"{self.certificate}.pem"),
            str(self.pki / f"{self.certificate}.key"),
            str(self.pki / "ca.pem"),
        )
        url = f"https://{self.address}"
        peer = "https://127.0.0.1:0"  # a member without others: nobody ever dials it
        flags = {
            "name": self.name,
            "data-dir": self.data,
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"{self.name}={peer}",
            # Read only when the data folder is new: the cluster's id, which tells stores apart.
            "initial-cluster-token": secrets.token_hex(8),
            "cert-file": own,
            "key-file": key,
            "trusted-ca-file": ca,
            "client-cert-allowed-hostname": dns_name(self.client),
            "peer-cert-file": own,
            "peer-key-file": key,
            "peer-trusted-ca-file": ca,
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": HISTORY_REVISIONS,
            "quota-backend-bytes": self.quota_bytes,
            "logger": "zap",
            "log-level": "warn",
        }
        # The gateway from HTTP would call etcd with etcd's own certificate, and nobody needs it.
        switches = ["--client-cert-auth", "--peer-client-cert-auth", "--enable-grpc-gateway=false"]
        return [str(binary), *(f"--{flag}={value}" for flag, value in flags.items()), *switches]

    def healthy(self, timeout_s: float = 1.0) -> bool:
        """Whether it has a leader and answers; never raises."""
        host, _, port = self.address.rpartition(":")
        try:
            context = client_ssl_context(self.pki / "ca.pem")
            context.load_cert_chain(
                self.pki / f"{self.client}.pem", self.pki / f"{self.client}.key"
            )
            connection = http.client.HTTPSConnection(
                host, int(port), timeout=timeout_s, context=context
            )
            try:
                connection.request("GET", "/health")
                said = json.loads(connection.getresponse().read())
                return isinstance(said, dict) and said.get("health") == "true"
            finally:
                connection.close()
        except (OSError, ValueError, BadInput, http.client.HTTPException):
            return False
