"""Mutual TLS between processes, TLS for clients, and who a caller is.

A caller's identity is the SAN of its certificate, ``<name>.imctl.internal``: an IDC's name,
``witness``, ``linkproxy`` or ``admin``. Where a peer listens says nothing about who it is (links
go through proxies), so a channel checks the certificate against the peer's *name*.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from imcore.certificates import CertificateFiles, unreadable
from imcore.channel import RenewingChannel
from imcore.errors import BadInput
from imcore.pki import DOMAIN, dns_name

log = logging.getLogger("im.tls")

MESSAGE_BYTES_MAX = 16 << 20

# Keepalive finds a silently cut link: without it a half-open stream would hang for minutes.
# Servers must pass SERVER_OPTIONS, or they drop a caller for pinging too often.
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long one attempt may take; a handshake over a WAN link needs three round trips.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # one channel's back-off is not another's
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
]
SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),  # a second process on the same port is an error, not a share
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
]


class AuthContext(Protocol):
    """The part of ``grpc.aio.ServicerContext`` that tells who calls."""

    def auth_context(self) -> Any: ...


def grpc_server_credentials(pki_dir: Path, name: str) -> grpc.ServerCredentials:
    """Callers must show a certificate of the region's CA. New connections take the certificate
    that the files hold then. Raises BadInput."""
    files = CertificateFiles(Path(pki_dir), name)

    def configuration() -> grpc.ServerCertificateConfiguration:
        ca, certificate, key = files.pair[:3]
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """In any of gRPC's threads. None: as before."""
        return configuration() if files.renewed() else None

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        renewed,  # type: ignore[arg-type]  # its stubs forget None
        require_client_authentication=True,
    )


def grpc_channel(pki_dir: Path, own_name: str, peer_name: str, target: str) -> grpc.aio.Channel:
    """A channel to ``target`` that accepts nobody but ``peer_name``. Each call shows the
    certificate that the files hold then. Raises BadInput."""
    files = CertificateFiles(Path(pki_dir), own_name)
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", dns_name(peer_name))]

    def made() -> grpc.aio.Channel:
        ca, certificate, key = files.pair[:3]
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        return grpc.aio.secure_channel(target, credentials, options=options)

    return RenewingChannel(made, files.renewed)


def caller_name(context: AuthContext) -> str:
    """The name in the caller's certificate; empty (allowed nothing) when there is none."""
    suffix = f".{DOMAIN}"
    for value in context.auth_context().get("x509_subject_alternative_name", ()):
        text: str = value.decode(errors="replace")
        if text.endswith(suffix):
            return text.removesuffix(suffix)
    return ""


def gateway_ssl_context(pki_dir: Path, name: str, ask: bool = False) -> ssl.SSLContext:
    """For listeners that clients dial; clients show a token, not a certificate (unless they are
    to ``ask`` for one). New connections take the certificate that the files hold then. Raises
    BadInput."""
    folder = Path(pki_dir)
    files = CertificateFiles(folder, name)
    first = current = _server_context(folder, name, ask)

    def renew(connection: ssl.SSLObject, server_name: str | None, _: ssl.SSLContext) -> None:
        nonlocal current
        if files.renewed():
            try:
                current = _server_context(folder, name, ask)
            except BadInput as error:  # changed once more since; the files are looked at again
                log.warning("a new certificate is not taken: %s", error)
        connection.context = current

    # Called in every handshake, with or without a name. The listener goes on with this context;
    # the connection alone is given another.
    first.sni_callback = renew
    return first


def monitor_ssl_context(pki_dir: Path, name: str) -> ssl.SSLContext:
    """For the listener of probes and metrics: a caller may show a certificate of the region's CA,
    and what it may read goes by it (``peer_name``). Certificates are renewed as a gateway's are.
    Raises BadInput."""
    return gateway_ssl_context(pki_dir, name, ask=True)


def peer_name(transport: asyncio.BaseTransport | None) -> str:
    """The name in the certificate of who is at the other end; empty: it has shown none."""
    connection = transport.get_extra_info("ssl_object") if transport is not None else None
    shown = connection.getpeercert() if connection is not None else None
    suffix = f".{DOMAIN}"
    for kind, value in (shown or {}).get("subjectAltName", ()):
        if kind == "DNS" and value.endswith(suffix):
            return str(value.removesuffix(suffix))
    return ""


def _server_context(folder: Path, name: str, ask: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    except (ssl.SSLError, OSError) as error:
        raise BadInput(
            f"{folder / name}.pem: expected a certificate with its key beside it"
        ) from error
    if ask:
        context.load_verify_locations(folder / "ca.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_ssl_context(ca_file: Path) -> ssl.SSLContext:
    """Trusts this CA alone and checks host names. Raises BadInput."""
    path = Path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise BadInput(f"{path}: expected a PEM certificate of the region's CA") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return context
