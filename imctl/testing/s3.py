"""A real S3 server for tests: killed, paused and filled as they like."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from imctl.engines.binaries import Program
from imctl.engines.s3 import Server, credentials_text
from imctl.target.places import free_port
from imctl.testing.child import Child, started
from services.engines.s3.client import S3Settings
from services.engines.s3.signing import Credentials

START_S = 20.0
REGION = "eu-test-1"
BUCKET = "im-files"
CREDENTIALS = Credentials("im-test", "not-a-secret")


class S3Process(Child):
    """TLS on, as the server ``iad`` of a pki folder."""

    def __init__(self, program: Program, folder: Path, pki: Path, port: int) -> None:
        super().__init__("versitygw", folder / "s3.log")
        self._binary = program.path
        self.credentials = folder / "credentials"
        self.credentials.write_text(
            credentials_text(CREDENTIALS.access_key, CREDENTIALS.secret_key)
        )
        self.server = Server(
            folder / "s3", f"127.0.0.1:{port}", pki, "iad", self.credentials, BUCKET, REGION
        )

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def data(self) -> Path:
        return self.server.data

    def settings(self, prefix: str, bucket: str = BUCKET) -> S3Settings:
        return S3Settings(
            idc="fra",
            endpoint=f"https://{self.address}",
            bucket=bucket,
            region=REGION,
            prefix=prefix,
            credentials=CREDENTIALS,
            ca_file=str(self.server.pki / "ca.pem"),
        )

    def start(self) -> None:
        """Until it serves, with the bucket."""
        self.server.prepare()
        self.spawn(self.server.command(self._binary))
        self.until_ready(self.server.healthy, START_S)


@contextlib.contextmanager
def running(program: Program, folder: Path, pki: Path) -> Iterator[S3Process]:
    folder.mkdir(parents=True, exist_ok=True)
    with started(S3Process(program, folder, pki, free_port())) as process:
        yield process
