"""The pki folder, and that mutual TLS lets in exactly whom it should."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from imcore import pki, tls
from imcore.certificates import CertificateFiles, unreadable
from imcore.errors import BadInput
from imcore.proto import peer_pb2 as pb
from imcore.proto import peer_pb2_grpc as rpc

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class EchoCaller(rpc.AdminServicer):
    async def Status(self, request, context):
        return pb.StatusReply(idc=tls.caller_name(context))

    async def StateHash(self, request, context):
        raise NotImplementedError

    async def Fault(self, request, context):
        raise NotImplementedError

    async def Shutdown(self, request, context):
        raise NotImplementedError


@pytest.fixture
async def server(pki_dir: Path):
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    rpc.add_AdminServicer_to_server(EchoCaller(), server)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(pki_dir, "fra"))
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def ask(channel: grpc.aio.Channel) -> str:
    async with channel:
        reply = await rpc.AdminStub(channel).Status(pb.StatusRequest(), timeout=15)
        return reply.idc


def test_init_makes_everything_once_and_never_overwrites(tmp_path: Path) -> None:
    first = pki.init(tmp_path, {"fra": (), "admin": ()}, NOW)
    assert sorted(first) == [
        "admin.key",
        "admin.pem",
        "ca.key",
        "ca.pem",
        "fra.key",
        "fra.pem",
        "region-keys.json",
    ]
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert pki.init(tmp_path, {"fra": (), "admin": (), "iad": ()}, NOW) == ["iad.key", "iad.pem"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    pki.init(tmp_path, {"fra": ()}, NOW)
    for name in ("ca.key", "fra.key", "region-keys.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name


def test_who_may_not_read_a_key_is_not_told_to_make_one() -> None:
    key = Path("pki/fra.key")
    denied = str(unreadable(key, PermissionError(13, "Permission denied", "pki/fra.key")))
    assert denied.endswith("got Permission denied; keys are for their owner alone: run this as him")
    absent = str(unreadable(key, FileNotFoundError(2, "No such file or directory")))
    assert absent.endswith("`imctl pki init FILE` makes what is missing")


def test_an_expired_certificate_is_named_not_replaced(tmp_path: Path) -> None:
    pki.init(tmp_path, {"fra": ()}, NOW)
    with pytest.raises(BadInput, match=r"fra\.pem: expired 2028-"):
        pki.init(tmp_path, {"fra": ()}, NOW + timedelta(days=pki.LEAF_DAYS + 1))


def test_a_certificate_that_lacks_a_host_is_named(tmp_path: Path) -> None:
    pki.init(tmp_path, {"fra": ()}, NOW)
    with pytest.raises(BadInput, match=r"fra\.pem: expected it to name fra\.example"):
        pki.init(tmp_path, {"fra": ("fra.example",)}, NOW)


def test_a_certificate_of_another_ca_is_named(tmp_path: Path) -> None:
    pki.init(tmp_path / "a", {"fra": ()}, NOW)
    pki.init(tmp_path / "b", {"fra": ()}, NOW)
    (tmp_path / "a" / "fra.pem").write_bytes((tmp_path / "b" / "fra.pem").read_bytes())
    with pytest.raises(BadInput, match=r"fra\.pem: expected a certificate of this folder's CA"):
        pki.init(tmp_path / "a", {"fra": ()}, NOW)


def test_a_rotation_that_finds_the_disk_full_leaves_the_pair_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else no process of that name could start again: its old key would be gone."""
    pki.init(tmp_path, {"fra": ["localhost"]}, NOW)
    before = CertificateFiles(tmp_path, "fra").pair
    synced: list[int] = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        pki.rotate(tmp_path, ["fra"], NOW)
    assert CertificateFiles(tmp_path, "fra").pair == before
    assert not list(tmp_path.glob(".*"))


def test_a_certificate_whose_key_is_another_is_named_with_what_to_do(tmp_path: Path) -> None:
    """A power cut between the two leaves such a pair."""
    pki.init(tmp_path, {"fra": ["localhost"]}, NOW)
    old = (tmp_path / "fra.pem").read_bytes()
    pki.rotate(tmp_path, ["fra"], NOW)
    (tmp_path / "fra.pem").write_bytes(old)
    remedy = "imctl pki rotate fra"
    with pytest.raises(BadInput, match=rf"fra\.pem: expected .* `{remedy}`"):
        pki.init(tmp_path, {"fra": ["localhost"]}, NOW)
    with pytest.raises(BadInput, match=rf"fra\.pem: expected .* `{remedy}`"):
        CertificateFiles(tmp_path, "fra")
    pki.rotate(tmp_path, ["fra"], NOW)
    assert pki.init(tmp_path, {"fra": ["localhost"]}, NOW) == []


def test_show_lists_the_ca_first(tmp_path: Path) -> None:
    pki.init(tmp_path, {"fra": ("fra.example",), "admin": ()}, NOW)
    infos = pki.show(tmp_path)
    assert [info.name for info in infos] == ["ca", "admin", "fra"]
    assert set(infos[2].hosts) == {"fra.imctl.internal", "fra.example"}


@pytest.mark.parametrize(
    ("ends", "named"),
    [
        (("fra.example",), ("fra.example",)),
        (("10.1.0.4", "fra.example"), ("10.1.0.4", "fra.example")),
        (("localhost",), pki.LOCAL_HOSTS),
        (("127.0.0.2", "fra.example"), ("127.0.0.2", "fra.example", *pki.LOCAL_HOSTS)),
        (("::1",), ("::1", *pki.LOCAL_HOSTS)),
        ((), ()),
    ],
)
def test_a_certificate_names_this_machine_only_where_an_endpoint_is_on_it(
    tmp_path: Path, ends: tuple[str, ...], named: tuple[str, ...]
) -> None:
    """Else whoever has the key of one IDC could pass, on any machine, for what is local there."""
    pki.init(tmp_path, {"fra": ends}, NOW)
    assert set(pki.show(tmp_path)[1].hosts) == {"fra.imctl.internal", *named}
    assert pki.init(tmp_path, {"fra": ends}, NOW) == []


def test_a_certificate_of_before_that_names_more_stays_good(tmp_path: Path) -> None:
    pki.init(tmp_path, {"fra": ("fra.example", "localhost")}, NOW)
    assert pki.init(tmp_path, {"fra": ("fra.example",)}, NOW) == []


def test_what_is_handed_to_people_cannot_pass_for_a_server(tmp_path: Path) -> None:
    pki.init(tmp_path, {"admin": (), "operator": (), "viewer": ()}, NOW)
    pki.rotate(tmp_path, ["viewer"], NOW)
    for name in pki.CALLERS:
        certificate = x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes())
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    hosts = {info.name: info.hosts for info in pki.show(tmp_path)}
    assert {hosts[name] for name in pki.CALLERS} == {
        ("admin.imctl.internal",), ("operator.imctl.internal",), ("viewer.imctl.internal",),
    }  # fmt: skip


def as_it_was_made_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`admin`, with hosts and good for serving."""
    monkeypatch.setattr(pki, "CALLERS", frozenset({"operator", "viewer"}))
    pki.init(folder, {"admin": pki.LOCAL_HOSTS}, datetime.now(UTC))
    monkeypatch.undo()


def test_an_admin_of_before_stays_good_and_loses_its_hosts_when_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_was_made_before(tmp_path, monkeypatch)
    assert pki.init(tmp_path, {"admin": ()}, datetime.now(UTC)) == []
    assert "localhost" in pki.show(tmp_path)[1].hosts
    (info,) = pki.rotate(tmp_path, ["admin"], datetime.now(UTC))
    assert info.hosts == ("admin.imctl.internal",)


@pytest.mark.parametrize("name", sorted(pki.CALLERS))
async def test_a_role_that_serves_is_believed_by_no_client(pki_dir: Path, name: str) -> None:
    """Not as a gateway (by host), and not even under its own name over gRPC."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = tls.gateway_ssl_context(pki_dir, name)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = tls.client_ssl_context(pki_dir / "ca.pem")
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", port, ssl=client)
        client.check_hostname = False  # what its usage forbids, no name allows
        with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
            await asyncio.open_connection("127.0.0.1", port, ssl=client)

    served = grpc.aio.server()
    credentials = tls.grpc_server_credentials(pki_dir, name)
    port = served.add_secure_port("127.0.0.1:0", credentials)
    await served.start()
    try:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(tls.grpc_channel(pki_dir, "fra", name, f"127.0.0.1:{port}"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await served.stop(None)


async def test_the_caller_is_known_by_its_certificate(pki_dir: Path, server: str) -> None:
    for name in ("admin", "operator", "viewer", "iad", "witness"):
        assert await ask(tls.grpc_channel(pki_dir, name, "fra", server)) == name


async def test_a_server_with_another_name_is_not_accepted(pki_dir: Path, server: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(tls.grpc_channel(pki_dir, "admin", "iad", server))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_of_another_ca_is_not_let_in(
    pki_dir: Path, server: str, tmp_path: Path
) -> None:
    pki.init(tmp_path, {"admin": ()}, datetime.now(UTC))
    (tmp_path / "ca.pem").write_bytes((pki_dir / "ca.pem").read_bytes())
    with pytest.raises(BadInput):  # our own clients do not even try
        tls.grpc_channel(tmp_path, "admin", "fra", server)
    pair = [(tmp_path / name).read_bytes() for name in ("ca.pem", "admin.key", "admin.pem")]
    named = [("grpc.ssl_target_name_override", pki.dns_name("fra"))]
    credentials = grpc.ssl_channel_credentials(*pair)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(grpc.aio.secure_channel(server, credentials, options=named))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_clients_check_the_gateways_certificate(pki_dir: Path, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(
        answer, "127.0.0.1", 0, ssl=tls.gateway_ssl_context(pki_dir, "fra")
    )
    port = server.sockets[0].getsockname()[1]
    async with server:
        context = tls.client_ssl_context(pki_dir / "ca.pem")
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert await reader.read() == b"hello"
        writer.close()
        pki.init(tmp_path, {}, NOW)
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.open_connection(
                "127.0.0.1", port, ssl=tls.client_ssl_context(tmp_path / "ca.pem")
            )


def test_region_keys_of_one_region_agree(pki_dir: Path) -> None:
    signature = pki.load_region_keys(pki_dir).sign(b"data", b"test")
    assert pki.load_region_keys(pki_dir).check(b"data", signature, b"test")


KEY = base64.b64encode(bytes(32)).decode()
NO_KEYS = [
    "",
    "[]",
    '{"current": 1}',
    '{"current": 2, "keys": {"1": "AA=="}}',
    "null",
    "[" * 99_999,
]
# Running IDCs would take these, and then sign nothing any more: an id stands in 32 bits.
NO_IDS = [f'{{"current": {one}, "keys": {{"{one}": "{KEY}"}}}}' for one in ("-1", "4294967296")]


@pytest.mark.parametrize(
    "document", [*NO_KEYS, *NO_IDS, f'{{"current": 1e999, "keys": {{"1": "{KEY}"}}}}']
)
def test_bad_region_keys_are_one_clear_line(tmp_path: Path, document: str) -> None:
    (tmp_path / "region-keys.json").write_text(document)
    with pytest.raises(BadInput, match=r"region-keys\.json: expected"):
        pki.load_region_keys(tmp_path)


def test_a_missing_certificate_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "region-keys.json").write_text(json.dumps({}))
    with pytest.raises(BadInput, match=r"ca\.pem: expected a readable file.*imctl pki init"):
        tls.grpc_server_credentials(tmp_path, "fra")
