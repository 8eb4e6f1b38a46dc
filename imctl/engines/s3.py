"""One S3 server as a process on this machine: its command line, and whether it serves."""

from __future__ import annotations

import http.client
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from imcore.errors import BadInput
from imcore.tls import client_ssl_context
from imctl.errors import Failed

REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Server:
    """``certificate``: the name of its own in the pki folder. ``credentials``: the file of its one
    user, which is made at its first start: it and its clients read it."""

    data: Path
    address: str
    pki: Path
    certificate: str
    credentials: Path
    bucket: str
    region: str = REGION

    def prepare(self) -> None:
        """Before each start. A bucket is a folder to it. Raises Failed."""
        try:
            (self.data / "objects" / self.bucket).mkdir(parents=True, exist_ok=True)
            if not self.credentials.exists():
                new = self.credentials.with_suffix(".new")
                text = credentials_text("imctl", secrets.token_urlsafe(32))
                with open(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as file:
                    file.write(text)
                new.replace(self.credentials)
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from error

    def command(self, binary: Path) -> list[str]:
        return [
            str(binary),
            f"--address={self.address}",
            f"--data={self.data}",
            f"--cert-file={self.pki / f'{self.certificate}.pem'}",
            f"--key-file={self.pki / f'{self.certificate}.key'}",
            f"--credentials-file={self.credentials}",
            f"--region={self.region}",
        ]

    def healthy(self, timeout_s: float = 1.0) -> bool:
        """Never raises."""
        host, _, port = self.address.rpartition(":")
        try:
            context = client_ssl_context(self.pki / "ca.pem")
            connection = http.client.HTTPSConnection(
                host, int(port), timeout=timeout_s, context=context
            )
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            finally:
                connection.close()
        except (OSError, ValueError, BadInput, http.client.HTTPException):
            return False


def credentials_text(access_key: str, secret_key: str) -> str:
    """As AWS's tools have it."""
    return f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
