"""Certificates rotated under running listeners: nobody is disconnected, whoever is new sees the new
one, and a rotation that is half done is not taken."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from imcore import pki, tls
from imcore.certificates import CertificateFiles, expiry_alarms
from imcore.errors import BadInput
from imcore.proto import client_pb2 as pb
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imctl.testing.onenode import running
from services.state.testing import Front

NAMES = {"fra": pki.LOCAL_HOSTS, "iad": pki.LOCAL_HOSTS, "admin": ()}


def now() -> datetime:
    return datetime.now(UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pki.init(tmp_path / "pki", NAMES, now())
    return tmp_path / "pki"


def der(folder: Path, name: str) -> bytes:
    return ssl.PEM_cert_to_DER_cert((folder / f"{name}.pem").read_text())


def shown_to(client: Any) -> bytes:
    certificate: bytes = client.transport.get_extra_info("ssl_object").getpeercert(True)
    return certificate


async def test_a_gateway_takes_a_new_certificate_under_live_connections(folder: Path) -> None:
    keys = pki.load_region_keys(folder)
    context = tls.client_ssl_context(folder / "ca.pem")
    async with Front(keys, (tls.gateway_ssl_context(folder, "fra"), context)) as front:
        before = der(folder, "fra")
        ann, _ = await front.connect("ann")
        bob, _ = await front.connect("bob")
        assert shown_to(ann) == shown_to(bob) == before

        for cid in range(1, 4):
            pki.rotate(folder, ["fra"], now())
            assert der(folder, "fra") != before
            carl, _ = await front.connect(f"carl{cid}")
            assert shown_to(carl) == der(folder, "fra")
            # Those who were there talk on.
            send = pb.Send(conversation="d:ann:bob", cid=cid, content=b"hi")
            assert (await ann.ask(pb.Request(send=send))).send_ack.placed.seq == cid
            assert (await bob.event("push")).push.entries[0].message.content == b"hi"
        assert shown_to(ann) == before


async def test_half_a_rotation_is_not_taken(folder: Path) -> None:
    """The key is written first; until its certificate follows, the old pair goes on."""
    keys = pki.load_region_keys(folder)
    context = tls.client_ssl_context(folder / "ca.pem")
    async with Front(keys, (tls.gateway_ssl_context(folder, "fra"), context)) as front:
        before, pem = der(folder, "fra"), (folder / "fra.pem").read_bytes()
        pki.rotate(folder, ["fra"], now())
        new = (folder / "fra.pem").read_bytes()
        iad = (folder / "iad.pem").read_bytes()
        for number, broken in enumerate((pem, b"", b"rubbish", iad)):
            (folder / "fra.pem").write_bytes(broken)
            ann, _ = await front.connect(f"ann{number}")
            assert shown_to(ann) == before
        (folder / "fra.pem").unlink()
        ann, _ = await front.connect("bob")
        assert shown_to(ann) == before
        (folder / "fra.pem").write_bytes(new)
        ann, _ = await front.connect("carl")
        assert shown_to(ann) == der(folder, "fra") != before


class Caller(rpc.AdminServicer):
    async def Status(self, request: peer.StatusRequest, context: Any) -> peer.StatusReply:
        return peer.StatusReply(idc=tls.caller_name(context))

    async def StateHash(self, request, context):
        raise NotImplementedError

    async def Fault(self, request, context):
        raise NotImplementedError

    async def Shutdown(self, request, context):
        raise NotImplementedError


async def ask(channel: grpc.aio.Channel) -> str:
    reply = await rpc.AdminStub(channel).Status(peer.StatusRequest(), timeout=20)
    return str(reply.idc)


async def peer_certificate(folder: Path, port: int) -> bytes:
    """What a server shows to a new caller."""
    context = tls.client_ssl_context(folder / "ca.pem")
    context.load_cert_chain(folder / "admin.pem", folder / "admin.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
    writer.close()
    return certificate


async def test_a_grpc_server_takes_a_new_certificate_under_live_channels(folder: Path) -> None:
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    rpc.add_AdminServicer_to_server(Caller(), server)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(folder, "fra"))
    await server.start()
    async with tls.grpc_channel(folder, "iad", "fra", f"127.0.0.1:{port}") as old:
        assert await ask(old) == "iad"
        assert await peer_certificate(folder, port) == der(folder, "fra")
        before = der(folder, "fra")
        pki.rotate(folder, ["fra", "admin"], now())
        assert await peer_certificate(folder, port) == der(folder, "fra") != before
        assert await ask(old) == "iad"
        async with tls.grpc_channel(folder, "admin", "fra", f"127.0.0.1:{port}") as new:
            assert await ask(new) == "admin"
    await server.stop(None)


async def test_a_caller_shows_its_new_certificate_without_a_restart(folder: Path) -> None:
    """A stub that was made before goes on, and so does a stream that runs."""
    shown: list[int] = []

    class Noting(Caller):
        async def Status(self, request: peer.StatusRequest, context: Any) -> peer.StatusReply:
            pem = next(iter(context.auth_context()["x509_pem_cert"]))
            shown.append(x509.load_pem_x509_certificate(pem).serial_number)
            return peer.StatusReply(idc=tls.caller_name(context))

    async def echo(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield request

    handler = grpc.stream_stream_rpc_method_handler(echo)
    echoes = grpc.method_handlers_generic_handler("im.Echo", {"Echo": handler})
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    server.add_generic_rpc_handlers((echoes,))
    rpc.add_AdminServicer_to_server(Noting(), server)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(folder, "fra"))
    await server.start()
    async with tls.grpc_channel(folder, "iad", "fra", f"127.0.0.1:{port}") as channel:
        stub = rpc.AdminStub(channel)
        stream: Any = channel.stream_stream("/im.Echo/Echo", None, None)(None)
        await stream.write(b"before")
        assert await stream.read() == b"before"
        await stub.Status(peer.StatusRequest(), timeout=20)
        pki.rotate(folder, ["iad"], now())
        async with asyncio.timeout(30):
            while len(set(shown)) < 2:
                await stub.Status(peer.StatusRequest(), timeout=20)
                await asyncio.sleep(0.1)
        certificate = x509.load_pem_x509_certificate((folder / "iad.pem").read_bytes())
        assert shown[-1] == certificate.serial_number
        await stream.write(b"after")
        assert await stream.read() == b"after"
    await server.stop(None)


async def test_an_idc_whose_certificate_expired_is_back_without_a_restart(folder: Path) -> None:
    pki.rotate(folder, ["fra"], now() - timedelta(days=pki.LEAF_DAYS + 1))
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    rpc.add_AdminServicer_to_server(Caller(), server)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(folder, "fra"))
    await server.start()
    async with tls.grpc_channel(folder, "admin", "fra", f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel)
        pki.rotate(folder, ["fra"], now())
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await ask(channel) == "admin"
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)
    await server.stop(None)


async def test_every_listener_of_an_idc_takes_it_and_its_status_tells(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    async with running(tmp_path, faults=False) as node:
        ends = node.config.idc.endpoints
        ports = [int(end.rpartition(":")[2]) for end in (ends.gateway, ends.ipconf, ends.peer)]
        for port in ports:
            assert await peer_certificate(folder, port) == der(folder, "fra")
        assert node.status.as_dict()["certificates"]["days_left"] >= pki.LEAF_DAYS - 1
        assert not node.status.as_dict()["alarms"]

        pki.rotate(folder, ["fra"], now() - timedelta(days=pki.LEAF_DAYS - 12))
        for port in ports:
            assert await peer_certificate(folder, port) == der(folder, "fra")
        status = node.status.as_dict()
        assert status["certificates"]["days_left"] in (11, 12)
        assert "the certificate of fra expires in 1" in status["alarms"][0]
        assert "`imctl pki rotate fra`" in status["alarms"][0]
        (folder / "fra.pem").write_text("rubbish")
        assert "a new certificate is not taken" in str(node.status.as_dict()["alarms"])


def test_alarms_begin_below_thirty_days(folder: Path) -> None:
    pair = CertificateFiles(folder, "fra").pair
    assert expiry_alarms(pair, "fra", pair.expires - timedelta(days=30)) == []
    soon = expiry_alarms(pair, "fra", pair.expires - timedelta(days=29))
    assert [sentence[:40] for sentence in soon] == ["the certificate of fra expires in 29 day"]
    assert "expired on" in expiry_alarms(pair, "fra", pair.expires + timedelta(seconds=1))[0]
    ca = expiry_alarms(pair, "fra", pair.ca_expires - timedelta(days=1))
    assert ca[1].startswith("the CA's certificate expires in 1 days")


def test_rotate_refuses_names_without_a_certificate_and_the_ca(folder: Path) -> None:
    for name in ("mars", "ca"):
        with pytest.raises(BadInput, match=r"expected a name of admin, fra, iad"):
            pki.rotate(folder, ["fra", name], now())
    before = pki.show(folder)
    made = pki.rotate(folder, ["fra"], now())
    assert made[0].hosts == before[2].hosts and made[0].fingerprint != before[2].fingerprint
    assert (folder / "fra.key").stat().st_mode & 0o777 == 0o600
