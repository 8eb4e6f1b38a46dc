"""One name's certificate as its files are now: renewed under a running process, and how long it
still holds.

Files are looked at when somebody asks, which servers do at each handshake: three ``stat`` calls.
A pair that does not belong together (a rotation that is half done) is not taken; what was loaded
last goes on.
"""

from __future__ import annotations

import logging
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from imcore.errors import BadInput

log = logging.getLogger("im.tls")

WARN_DAYS = 30  # time to rotate by hand, over holidays too


class Pair(NamedTuple):
    """PEM, and until when."""

    ca: bytes
    certificate: bytes
    key: bytes
    expires: datetime
    ca_expires: datetime


class CertificateFiles:
    """Of ``name`` in a pki folder. Raises BadInput when made on files that do not serve."""

    def __init__(self, folder: Path, name: str) -> None:
        self._paths = paths_of(folder, name)
        self._seen = self._marks()
        self.pair = self._load()
        self.problem = ""  # why newer files are not taken

    def renewed(self) -> bool:
        """Whether ``pair`` is another one since the last call. Never raises."""
        try:
            marks = self._marks()
            if marks == self._seen:
                return False
            found = self._load()
            if self._marks() != marks:
                return False  # being changed; the next look sees it whole
        except (BadInput, OSError) as error:
            if str(error) != self.problem:
                self.problem = str(error)
                log.warning("a new certificate is not taken yet: %s", error)
            return False
        changed = found != self.pair
        self._seen, self.pair, self.problem = marks, found, ""
        if changed:
            log.info("%s is used from now on, until %s", self._paths[1], found.expires.date())
        return changed

    def _marks(self) -> list[tuple[int, int, int]]:
        try:
            found = [path.stat() for path in self._paths]
        except OSError as error:
            raise unreadable(Path(error.filename), error) from error
        return [(one.st_mtime_ns, one.st_size, one.st_ino) for one in found]

    def _load(self) -> Pair:
        ca_pem, pem, key_pem = read(self._paths)
        name = self._paths[1]
        again = f"; `imctl pki rotate {name.stem}` makes both anew"
        try:
            ca = x509.load_pem_x509_certificate(ca_pem)
            certificate = x509.load_pem_x509_certificate(pem)
            key = serialization.load_pem_private_key(key_pem, password=None)
            if key.public_key() != certificate.public_key():
                raise BadInput(f"{name}: expected a certificate with its key beside it{again}")
            certificate.verify_directly_issued_by(ca)
        except (InvalidSignature, ValueError, TypeError) as error:
            what = "a PEM certificate of this folder's CA with its key beside it"
            raise BadInput(f"{name}: expected {what}{again}") from error
        return Pair(ca_pem, pem, key_pem, certificate.not_valid_after_utc, ca.not_valid_after_utc)


def paths_of(folder: Path, name: str) -> tuple[Path, Path, Path]:
    return folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key"


def read(paths: tuple[Path, Path, Path]) -> tuple[bytes, bytes, bytes]:
    """CA, certificate and key, as PEM. Raises BadInput."""
    try:
        ca, certificate, key = (path.read_bytes() for path in paths)
    except OSError as error:
        raise unreadable(Path(error.filename), error) from error
    return ca, certificate, key


def unreadable(path: Path, error: OSError) -> BadInput:
    if isinstance(error, PermissionError):
        do = "keys are for their owner alone: run this as him"
    else:
        do = "`imctl pki init FILE` makes what is missing"
    return BadInput(f"{path}: expected a readable file, got {error.strerror}; {do}")


def days_left(expires: datetime, now: datetime) -> int:
    """Whole days; negative once it has expired."""
    return (expires - now).days


def expiry_alarms(pair: Pair, name: str, now: datetime) -> list[str]:
    """What to say when little time is left."""
    found = []
    ends = (
        (f"the certificate of {name}", pair.expires, f"`imctl pki rotate {name}`"),
        ("the CA's certificate", pair.ca_expires, "docs/security.md says how to change it"),
    )
    for what, expires, remedy in ends:
        left = days_left(expires, now)
        if left < 0:
            found.append(f"{what} expired on {expires:%Y-%m-%d}; {remedy}")
        elif left < WARN_DAYS:
            found.append(f"{what} expires in {left} days ({expires:%Y-%m-%d}); {remedy}")
    return found
