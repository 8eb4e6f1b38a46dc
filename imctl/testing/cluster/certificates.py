"""Who is who in a test cluster: one authority, a certificate and a kubeconfig for each of them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
DAYS = 30
# name of the files -> (user, group), as Kubernetes' own roles know them
USERS = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "to-kubelet": ("kube-apiserver", "system:masters"),
}


def write(folder: Path, node: str, server: str, addresses: Iterable[str]) -> None:
    """``ca``, ``apiserver``, ``service-accounts``, and for each user NAME.crt, NAME.key and
    NAME.kubeconfig, which leads to ``server`` (a URL). ``addresses``: of the API server."""
    folder.mkdir(mode=0o700, parents=True)
    authority = _Authority(folder)
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in NAMES]
    alternatives += [x509.IPAddress(ip_address(address)) for address in addresses]
    authority.issue("apiserver", "kube-apiserver", "", alternatives)
    users = USERS | {"kubelet": (f"system:node:{node}", "system:nodes")}
    for name, (user, group) in users.items():
        authority.issue(name, user, group, [])
        config = _kubeconfig(folder, name, server)
        (folder / f"{name}.kubeconfig").write_text(json.dumps(config))
    tokens = ec.generate_private_key(ec.SECP256R1())
    _write_key(folder / "service-accounts.key", tokens)
    public = tokens.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "service-accounts.pub").write_bytes(public)


class _Authority:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("test cluster", "")
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        certificate = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        (folder / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        _write_key(folder / "ca.key", self._key)

    def issue(self, file: str, user: str, group: str, alternatives: list[x509.GeneralName]) -> None:
        """With ``alternatives`` it serves, without it calls."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = Usage.SERVER_AUTH if alternatives else Usage.CLIENT_AUTH
        builder = (
            self._builder(_name(user, group), key)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        (self._folder / f"{file}.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        _write_key(self._folder / f"{file}.key", key)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=DAYS))
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(own, critical=False)
        )


def _name(user: str, group: str) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    if group:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(parts)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _kubeconfig(folder: Path, name: str, server: str) -> dict[str, Any]:
    def data(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
        "clusters": [
            {
                "name": "test",
                "cluster": {"server": server, "certificate-authority-data": data("ca.crt")},
            }
        ],
        "users": [
            {
                "name": name,
                "user": {
                    "client-certificate-data": data(f"{name}.crt"),
                    "client-key-data": data(f"{name}.key"),
                },
            }
        ],
    }
