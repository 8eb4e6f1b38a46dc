"""The region's small certificate authority: one CA, one certificate a name, the region keys.

Files of a pki folder: ``ca.pem``, ``ca.key``, ``<name>.pem``, ``<name>.key``, ``region-keys.json``.
Keys are readable by their owner only. What exists is never overwritten: a second run fills in
what is missing, and says so when a file that exists no longer serves.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from imcore.attest import RegionKeys
from imcore.certificates import unreadable
from imcore.errors import BadInput
from imcore.folders import alone, sync
from imcore.roles import Role

DOMAIN = "imctl.internal"  # never resolved: it only makes names of IDCs certificate names
CA_DAYS = 3650
LEAF_DAYS = 825  # what common clients accept at most
REGION_KEYS = "region-keys.json"
LOCAL_HOSTS = ("localhost", "127.0.0.1")
# They are handed to people, and must not serve to pass for a gateway: they name no host, and are
# good for calling alone.
CALLERS: frozenset[str] = frozenset(Role)


def dns_name(name: str) -> str:
    return f"{name}.{DOMAIN}"


def init(folder: Path, names: Mapping[str, Iterable[str]], now: datetime) -> list[str]:
    """Make what is missing of the pki for these names (each with the hosts under which it listens;
    where one of them is this machine, all of LOCAL_HOSTS). Returns the names of the files made.
    Raises BadInput when the folder cannot be written or an existing certificate does not serve."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(folder):
            made = _ensure_ca(folder, now)
            ca_key, ca = _load_ca(folder)
            for name, hosts in names.items():
                made += _ensure_leaf(folder, name, tuple(hosts), ca_key, ca, now)
            made += _ensure_region_keys(folder)
    except OSError as error:
        raise BadInput(
            f"{folder}: expected a folder that can be written, got "
            f"{error.strerror or error}; choose another with --out or --data"
        ) from error
    return made


def rotate(folder: Path, names: Iterable[str], now: datetime) -> list[CertificateInfo]:
    """A new key and certificate for each of these, for the same hosts. Running listeners take them
    with their next connection. Raises BadInput, and changes nothing then, for a name without one;
    for a folder that cannot be written."""
    wanted = list(names)
    for name in wanted:
        if name == "ca" or not (folder / f"{name}.pem").exists():
            known = ", ".join(info.name for info in show(folder) if info.name != "ca")
            raise BadInput(f"expected a name of {known}, got {name!r}")
    try:
        with alone(folder):
            ca_key, ca = _load_ca(folder)
            for name in wanted:
                had = _hosts(_read_certificate(folder / f"{name}.pem"))
                # `admin` once had some.
                hosts = {dns_name(name)} if name in CALLERS else had
                _make_leaf(folder, name, hosts, ca_key, ca, now)
    except OSError as error:
        raise BadInput(
            f"{folder}: expected a pki folder with ca.key that can be written, got "
            f"{error.strerror or error}"
        ) from error
    return [_info(folder / f"{name}.pem") for name in wanted]


class CertificateInfo(NamedTuple):
    name: str
    hosts: tuple[str, ...]
    expires: datetime
    fingerprint: str


def show(folder: Path) -> list[CertificateInfo]:
    """What certificates lie in the folder, the CA first. Raises BadInput."""
    paths = sorted(folder.glob("*.pem"), key=lambda path: (path.stem != "ca", path.stem))
    if not paths:
        raise BadInput(f"{folder}: expected certificates, found none; run `imctl pki init FILE`")
    return [_info(path) for path in paths]


def _info(path: Path) -> CertificateInfo:
    certificate = _read_certificate(path)
    return CertificateInfo(
        path.stem,
        tuple(sorted(_hosts(certificate))),
        certificate.not_valid_after_utc,
        certificate.fingerprint(hashes.SHA256()).hex()[:32],
    )


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise BadInput(f"{path}: expected a PEM certificate, got something else") from error


def _hosts(certificate: x509.Certificate) -> set[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    dns = names.get_values_for_type(x509.DNSName)
    return {*dns, *(str(ip) for ip in names.get_values_for_type(x509.IPAddress))}


def _ensure_ca(folder: Path, now: datetime) -> list[str]:
    if (folder / "ca.pem").exists():
        return []
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "imctl region CA")])
    certificate = (
        _builder(subject, subject, key.public_key(), now, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _write_pair(folder, "ca", key, certificate)


def _load_ca(folder: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    path = folder / "ca.key"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise BadInput(f"{path}: expected a PEM private key, got something else") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadInput(f"{path}: expected an elliptic-curve key, got another kind")
    return key, _read_certificate(folder / "ca.pem")


def _ensure_leaf(
    folder: Path,
    name: str,
    hosts: tuple[str, ...],
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    now: datetime,
) -> list[str]:
    wanted = {dns_name(name)}
    if name not in CALLERS:
        wanted |= {*hosts, *(LOCAL_HOSTS if any(map(_is_local, hosts)) else ())}
    path = folder / f"{name}.pem"
    if path.exists():
        _check_leaf(path, wanted, ca, now)
        return []
    return _make_leaf(folder, name, wanted, ca_key, ca, now)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _make_leaf(
    folder: Path,
    name: str,
    wanted: set[str],
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    now: datetime,
) -> list[str]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_name(name))])
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if name not in CALLERS:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    certificate = (
        _builder(subject, ca.subject, key.public_key(), now, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(wanted)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return _write_pair(folder, name, key, certificate)


def _check_leaf(path: Path, wanted: set[str], ca: x509.Certificate, now: datetime) -> None:
    certificate = _read_certificate(path)
    remedy = f"remove it and {path.with_suffix('.key').name}, then run `imctl pki init` again"
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise BadInput(f"{path}: expected a certificate of this folder's CA; {remedy}") from error
    if certificate.not_valid_after_utc <= now:
        raise BadInput(f"{path}: expired {certificate.not_valid_after_utc:%Y-%m-%d}; {remedy}")
    if not _has_its_key(path, certificate):
        again = f"`imctl pki rotate {path.stem}` makes both anew"
        raise BadInput(f"{path}: expected the certificate of the key beside it; {again}")
    if missing := wanted - _hosts(certificate):
        raise BadInput(f"{path}: expected it to name {', '.join(sorted(missing))}; {remedy}")


def _has_its_key(path: Path, certificate: x509.Certificate) -> bool:
    """Whether they belong together; a key that is kept elsewhere is not judged."""
    try:
        key = serialization.load_pem_private_key(path.with_suffix(".key").read_bytes(), None)
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return key.public_key() == certificate.public_key()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    """Valid from a day ago, so that machines whose clocks differ a little agree."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(hosts: Iterable[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host in sorted(hosts):
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _write_pair(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> list[str]:
    """Both are on the disk before the first is in its place, so a full disk leaves the former pair.
    The key first: a certificate that is made therefore always has its key."""
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    with (
        _written(folder / f"{name}.key", key_pem, 0o600) as new_key,
        _written(folder / f"{name}.pem", pem, 0o644) as new_certificate,
    ):
        new_key.replace(folder / f"{name}.key")
        new_certificate.replace(folder / f"{name}.pem")
    sync(folder)
    return [f"{name}.key", f"{name}.pem"]


def _ensure_region_keys(folder: Path) -> list[str]:
    path = folder / REGION_KEYS
    if path.exists():
        return []
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    write_private(path, (json.dumps({"current": 1, "keys": {"1": key}}) + "\n").encode())
    return [path.name]


class KeyIds(NamedTuple):
    """Which region keys there are; never what they are."""

    current: int  # signs
    ids: list[int]  # verify


def key_ids(folder: Path) -> KeyIds:
    """Raises BadInput."""
    keys = load_region_keys(folder)
    return KeyIds(keys.current, keys.ids)


def add_key(folder: Path) -> int:
    """A new region key, which verifies and does not sign yet; returns its id, which no key had
    before. Raises BadInput."""
    with _changed_keys(folder) as document:
        number = max([int(document.get("last", 0)), *map(int, document["keys"])]) + 1
        document["keys"][str(number)] = base64.b64encode(secrets.token_bytes(32)).decode()
        document["last"] = number
    return number


def use_key(folder: Path, number: int) -> None:
    """From now on it signs. Raises BadInput."""
    with _changed_keys(folder) as document:
        _known_key(document, number)
        document["current"] = number


def retire_key(folder: Path, number: int) -> None:
    """It verifies no more: what it signed is worth nothing. Raises BadInput for the current one."""
    with _changed_keys(folder) as document:
        _known_key(document, number)
        if number == document["current"]:
            raise BadInput(f"key {number} signs; `imctl pki keys use` another one first")
        document["last"] = max([int(document.get("last", 0)), *map(int, document["keys"])])
        del document["keys"][str(number)]


def _known_key(document: Mapping[str, Any], number: int) -> None:
    if str(number) not in document["keys"]:
        known = ", ".join(sorted(document["keys"], key=int))
        raise BadInput(f"expected a key id of {known}, got {number}")


@contextlib.contextmanager
def _changed_keys(folder: Path) -> Iterator[dict[str, Any]]:
    """The document of the region keys, written when the block ends well. Raises BadInput."""
    load_region_keys(folder)  # the whole judgement of the file
    try:
        with alone(folder):
            document: dict[str, Any] = json.loads((folder / REGION_KEYS).read_bytes())
            yield document
            write_private(folder / REGION_KEYS, (json.dumps(document) + "\n").encode())
    except OSError as error:
        raise BadInput(
            f"{folder}: expected a folder that can be written, got {error.strerror or error}"
        ) from error


def load_region_keys(pki_dir: Path) -> RegionKeys:
    """Raises BadInput; the message never repeats a key."""
    path = Path(pki_dir) / REGION_KEYS
    try:
        document = json.loads(path.read_bytes())
        keys = {
            int(key_id): base64.b64decode(text, validate=True)
            for key_id, text in document["keys"].items()
        }
        if any(len(key) != 32 for key in keys.values()):
            raise ValueError("a key is not 32 bytes long")
        if not all(0 <= key_id < 1 << 32 for key_id in keys):
            raise ValueError("an id does not fit a signature")
        return RegionKeys(keys, int(document["current"]))
    except OSError as error:
        raise unreadable(path, error) from error
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise BadInput(
            f'{path}: expected {{"current": ID, "keys": {{"ID": "<base64 of 32 bytes>"}}}}; '
            "restore the file from another IDC"
        ) from error


def write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    _write_whole(path, data, 0o600)


def _write_whole(path: Path, data: bytes, mode: int) -> None:
    with _written(path, data, mode) as new:
        new.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def _written(path: Path, data: bytes, mode: int) -> Iterator[Path]:
    """A durable file beside ``path``, which the block may put in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def utc_now(wall_ms: int) -> datetime:
    return datetime.fromtimestamp(wall_ms / 1000, UTC)
