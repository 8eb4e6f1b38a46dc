"""Certificates renewed under clients of engines: what connects from then on shows the new one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from imcore import pki, tls
from imcore.errors import BadInput, Unavailable
from imcore.region.model import Etcd
from services.engines.etcd import client as etcd_client
from services.engines.etcd import etcd_pb2 as pb
from services.engines.etcd import etcd_pb2_grpc as rpc
from services.engines.etcd.registry import EtcdRegistry
from services.engines.kafka.cluster import Cluster
from services.engines.kafka.settings import KafkaSettings
from services.engines.renewed import Renewed
from services.node.external import etcd_files, etcd_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pki.init(tmp_path / "pki", {"fra": pki.LOCAL_HOSTS, "iad": pki.LOCAL_HOSTS}, now())
    return tmp_path / "pki"


def now() -> datetime:
    return datetime.now(UTC)


def pem(folder: Path) -> str:
    return (folder / "fra.pem").read_text().strip()


def half_a_rotation(folder: Path) -> str:
    """What stands in the certificate's file when it is done."""
    old = pem(folder)
    pki.rotate(folder, ["fra"], now())
    new = pem(folder)
    (folder / "fra.pem").write_text(old)
    return new


async def test_kafkas_next_connection_shows_the_new_certificate(folder: Path) -> None:
    shown: list[str] = []

    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found = writer.get_extra_info("ssl_object").getpeercert(True)
        shown.append(ssl.DER_cert_to_PEM_cert(found).strip())
        writer.close()

    context = tls.monitor_ssl_context(folder, "iad")
    server = await asyncio.start_server(broker, "127.0.0.1", 0, ssl=context)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    files = folder / "ca.pem", folder / "fra.pem", folder / "fra.key"
    cluster = Cluster(KafkaSettings((place,), "im", *files, deadline_s=5.0), "fra")

    async def connect() -> str:
        with contextlib.suppress(Unavailable):  # it says nothing
            await cluster.look([])
        return shown[-1]

    before = pem(folder)
    assert await connect() == before
    new = half_a_rotation(folder)
    assert await connect() == before  # the old pair goes on until the new one is whole
    (folder / "fra.pem").write_text(new)
    assert await connect() == new != before
    await cluster.close()
    server.close()


class Members(rpc.MaintenanceServicer):
    """An etcd that tells whose certificate it was shown."""

    async def Status(self, request: pb.StatusRequest, context: Any) -> pb.StatusResponse:
        return pb.StatusResponse(version=context.auth_context()["x509_pem_cert"][0].decode())


@pytest.fixture
async def etcd(folder: Path) -> AsyncIterator[Etcd]:
    server = grpc.aio.server()
    members = Members()  # type: ignore[abstract]  # nothing else is called
    rpc.add_MaintenanceServicer_to_server(members, server)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(folder, "iad"))
    await server.start()
    yield Etcd(
        endpoints=[f"127.0.0.1:{port}"],
        ca_file=str(folder / "ca.pem"),
        cert_file=str(folder / "fra.pem"),
        key_file=str(folder / "fra.key"),
    )
    await server.stop(None)


async def test_etcds_next_call_shows_the_new_certificate(
    folder: Path, etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_client, "LOOK_S", 0.0)
    files = Renewed(etcd_files(etcd), lambda: etcd_settings(etcd, "p/"))
    registry = EtcdRegistry(files.value, "fra", lambda: files.value if files.look() else None)

    async def shown() -> str:
        return (await registry.version()).strip()

    before = pem(folder)
    assert await shown() == before
    new = half_a_rotation(folder)
    assert await shown() == before
    (folder / "fra.pem").write_text(new)
    assert await shown() == new != before
    await registry.close()


def test_files_that_do_not_serve_are_said_at_first_and_not_taken_later(folder: Path) -> None:
    files = [folder / "ca.pem", folder / "fra.pem", folder / "fra.key"]

    def read() -> str:
        if not (text := pem(folder)):
            raise BadInput("it is empty")
        return text

    renewed = Renewed(files, read)
    before = renewed.value
    assert not renewed.look()
    (folder / "fra.pem").write_text("")
    assert not renewed.look() and renewed.value == before
    with pytest.raises(BadInput, match="it is empty"):
        Renewed(files, read)
    pki.init(folder.with_name("other"), {"fra": pki.LOCAL_HOSTS}, now())
    (folder / "fra.pem").write_text((folder.with_name("other") / "fra.pem").read_text())
    assert renewed.look() and renewed.value == pem(folder) and not renewed.look()
